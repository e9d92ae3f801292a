"""Linear layers that leave something out by phase, as tuned files have it, until the model attends in another way."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

transformers = pytest.importorskip("transformers", reason="needs dynattn[transformers]")

from dynattn.integrations.transformers import Tuned, load  # noqa: E402
from dynattn.integrations.transformers.thinned import thinning  # noqa: E402
from dynattn.sparsity import LinearSetting  # noqa: E402
from dynattn.sparsity.weights.packed import FEW  # noqa: E402
from tests.integrations.transformers.test_tuned import said_by  # noqa: E402
from tests.integrations.transformers.tiny import assert_equal, text, tiny  # noqa: E402

PREFILL = LinearSetting({"0.gate": "nmact-1-2", "0.up": "nmact-1-2", "1.o": "nmact-2-4-norm"})
DECODE = LinearSetting({"0.down": "chess-0.5", "1.o": "wina-0.5", "1.q": "nmweight-2-4"}, thresholds={"0.down": (0.4,)})
BOTH = {"prefill": PREFILL, "decode": DECODE}


def _logits(model: Any, ids: torch.Tensor, steps: int = 0) -> torch.Tensor:
    """Of a prompt, and of the last tokens read one by one after it."""
    with torch.no_grad():
        if not steps:
            return model(ids).logits
        cache = transformers.DynamicCache(config=model.config)
        told = [model(ids[:, :-steps], past_key_values=cache).logits]
        told += [model(one, past_key_values=cache).logits for one in ids[:, -steps:].split(1, 1)]
    return torch.cat(told, 1)


def _prompt_and_steps(model: Any, ids: torch.Tensor, prompt: LinearSetting | None, step: LinearSetting | None) -> Any:
    """What the phases are held to: whole contexts around the prompt and around each step."""
    cache, told = transformers.DynamicCache(config=model.config), []
    for piece, setting in ((ids[:, :-1], prompt), (ids[:, -1:], step)):
        with torch.no_grad():
            if setting is None:
                told.append(model(piece, past_key_values=cache).logits)
                continue
            with setting.apply(model):
                told.append(model(piece, past_key_values=cache).logits)
    return torch.cat(told, 1)


@pytest.mark.parametrize("phases", [("prefill",), ("decode",), ("decode", "prefill"), ("prefill", "decode")])
def test_each_phase_works_by_its_own_and_the_model_is_itself_again(phases):
    model, ids = tiny("llama"), text(2, FEW + 1)["input_ids"]
    before, settings = _logits(model, ids), {phase: BOTH[phase] for phase in phases}
    state = {name: set(vars(module)) for name, module in model.named_modules()}
    expected = _prompt_and_steps(model, ids, settings.get("prefill"), settings.get("decode"))
    dense = _prompt_and_steps(model, ids, None, None)
    with thinning(model, settings):
        assert_equal(_logits(model, ids, 1), expected)
    assert ((expected - dense)[:, :-1].abs().max() > 1e-3) == ("prefill" in phases)
    assert (expected - dense)[:, -1].abs().max() > 1e-3
    assert torch.equal(_logits(model, ids), before)
    assert {name: set(vars(module)) for name, module in model.named_modules()} == state


def test_steps_of_a_batch_that_kernels_do_not_take_are_dense():
    model, ids = tiny("llama"), text(FEW + 1, 5)["input_ids"]
    expected = _prompt_and_steps(model, ids, PREFILL, None)
    with thinning(model, BOTH):
        assert_equal(_logits(model, ids, 1), expected)


def test_where_a_setting_is_refused_the_model_stays_as_it_was():
    model = tiny("llama")
    wrong = LinearSetting({"0.q": "wina-0.5", "7.q": "wina-0.5"})
    with pytest.raises(ValueError, match=r"7\.q is not"), thinning(model, {"prefill": PREFILL, "decode": wrong}):
        pass
    assert not any("forward" in vars(module) for module in model.modules())


def _saved(model: Any, path: Any, **more: Any) -> None:
    given: dict[str, Any] = {"dtype": "float64", "phase": "both", "lengths": (1, 12), "linears": BOTH, **more}
    Tuned.of(model, {}, **given).save(path)


def test_a_file_is_in_force_until_the_model_attends_in_another_way(tmp_path):
    model, path, ids = tiny("llama"), tmp_path / "m.json", text(1, FEW + 2)["input_ids"]
    before, dtypes = _logits(model, ids), {name: w.stride() for name, w in model.named_parameters()}
    _saved(model, path)
    assert Tuned.read(path).linears == BOTH
    with thinning(model, BOTH):
        expected = _logits(model, ids, 1)
    for _ in range(2):  # a second time it takes the place of the first
        load(model, path)
        assert_equal(_logits(model, ids, 1), expected)
    model.save_pretrained(tmp_path / "model")
    with pytest.raises(RuntimeError, match="must not be copied or pickled"):
        copy.deepcopy(model)
    again = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "model", attn_implementation=f"dynattn:{path}", dtype=torch.float64
    )
    assert_equal(_logits(again.eval(), ids, 1), expected)
    model.set_attn_implementation("sdpa")
    assert torch.equal(_logits(model, ids), before)
    assert {name: w.stride() for name, w in model.named_parameters()} == dtypes


def test_a_model_without_the_sites_is_refused_and_left_as_it_was(tmp_path):
    model, path = tiny("llama"), tmp_path / "m.json"
    _saved(model, path, linears={"decode": LinearSetting({"0.in": "wina-0.5"})})
    with pytest.raises(ValueError, match=r"every site must be in the model: 0\.in is not"):
        load(model, path)
    assert model.config._attn_implementation == "sdpa"


def test_a_claim_about_linear_layers_is_warned_of_where_attention_is_dense(tmp_path):
    model, path = tiny("llama"), tmp_path / "m.json"
    _saved(model, path, linears={"prefill": PREFILL})
    load(model, path)
    assert not said_by(model, **text(length=12))
    assert len(said_by(model, **text(length=13))) == 1
    _saved(model, path, phase="prefill", linears={"decode": DECODE})  # the lengths are those of prompts
    load(model, path)
    assert not said_by(model, **text(length=13))
