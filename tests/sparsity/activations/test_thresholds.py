"""Thresholds are quantiles of what the dense model computes on the given inputs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

pytest.importorskip("transformers")

from dynattn.sparsity import CHESS, TEAL, WINA, Calibrated, Sparsity, calibrate_thresholds, watching
from tests.pruning.structure.models import LAYERS, NEURONS, inputs, make
from tests.sparsity.oracle import PATHS


def _other(kind: str) -> dict[str, Any]:
    """One more text or picture."""
    return {name: value[:1].flip(1) for name, value in inputs(kind).items()}


def _read(model: Any, path: str, batches: list[dict[str, Any]]) -> torch.Tensor:
    """What a module reads in the dense model, without padding."""
    found = []
    handle = model.get_submodule(path).register_forward_pre_hook(lambda _, args: found.append(args[0]))
    with torch.no_grad():
        for batch in batches:
            model(**batch)
    handle.remove()
    masks = [batch.get("attention_mask", torch.ones(x.shape[:2])) for x, batch in zip(found, batches, strict=True)]
    return torch.cat([x[mask.bool()] for x, mask in zip(found, masks, strict=True)])


@pytest.mark.parametrize(("kind", "keep_ratio"), [("llama", 0.1), ("gpt2", 0.5), ("bert", 0.5), ("vit", 0.9)])
def test_the_threshold_is_the_quantile_of_all_tokens(kind, keep_ratio):
    model, batches = make(kind), [inputs(kind), _other(kind)]
    setting = calibrate_thresholds(TEAL(keep_ratio), model, batches)
    assert setting.thresholds.keys() == {f"{layer}.{name}" for layer in range(LAYERS) for name in PATHS[kind]}
    for name, path in PATHS[kind].items():
        sizes = _read(model, path.format(1), batches).abs().flatten()
        (least,) = setting.thresholds[f"1.{name}"]
        assert int((sizes > least).sum()) == round(keep_ratio * len(sizes))
        assert least in sizes


def test_what_is_kept_on_the_calibration_text_is_what_was_asked_for():
    """Of each site by itself, since what one layer leaves out changes what the next one reads."""
    model, batches = make("llama"), [inputs("llama")]
    for name, part in (("q", "qkv"), ("down", "mlp"), ("o", "out")):
        plan = Sparsity(**{part: TEAL(0.3)}, layers=range(1, 2), skip=tuple({"gate", "up"} & set(PATHS["llama"])))
        with calibrate_thresholds(plan, model, batches).apply(model), watching() as seen, torch.no_grad():
            model(**batches[0])
        assert seen[f"1.{name}"].density == pytest.approx(0.3, abs=1 / seen[f"1.{name}"].entries)


def test_neurons_are_weighed_by_what_their_gate_multiplies():
    model, batches, keep_ratio = make("llama"), [inputs("llama")], 0.3
    setting = calibrate_thresholds(CHESS(keep_ratio), model, batches)
    assert setting.thresholds.keys() == {f"{layer}.down" for layer in range(LAYERS)}
    for layer in range(LAYERS):
        mlp = model.model.layers[layer].mlp
        x = _read(model, f"model.layers.{layer}.mlp", batches)
        gate, means = nn.functional.silu(x @ mlp.gate_proj.weight.T), (x @ mlp.up_proj.weight.T).abs().mean(0)
        importance = (gate.abs() * means).flatten()
        kept = round(keep_ratio * len(importance))
        least = importance.sort(descending=True).values[kept - 1]
        found = torch.tensor(setting.thresholds[f"{layer}.down"])
        assert len(found) == NEURONS
        torch.testing.assert_close(found, least / means)
        assert abs(int((gate.abs() >= found).sum()) - kept) <= 1  # T / μ rounds
    with (
        calibrate_thresholds(Sparsity(mlp=CHESS(keep_ratio), layers=range(1)), model, batches).apply(model),
        watching() as seen,
    ):
        model(**batches[0])
    assert seen["0.up"].density == pytest.approx(keep_ratio, abs=2 / seen["0.up"].entries)


def test_without_a_gate_neurons_are_weighed_by_the_weights_that_read_them():
    model, batches = make("bert"), [inputs("bert")]
    setting = calibrate_thresholds(CHESS(0.4), model, batches)
    for layer in range(LAYERS):
        path = PATHS["bert"]["out"].format(layer)
        norms = model.get_submodule(path).weight.detach().norm(dim=0)
        importance = (_read(model, path, batches).abs() * norms).flatten()
        least = importance.sort(descending=True).values[round(0.4 * len(importance)) - 1]
        torch.testing.assert_close(torch.tensor(setting.thresholds[f"{layer}.out"]), least / norms)


def test_a_neuron_that_nothing_multiplies_is_never_asked_for_and_zeros_are():
    model, batches = make("llama"), [inputs("llama")]
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[3] = 0
    found = calibrate_thresholds(CHESS(0.5), model, batches).thresholds["0.down"]
    assert found[3] == torch.finfo(torch.float32).max
    assert max(value for i, value in enumerate(found) if i != 3) < 1e3


def test_everything_and_nothing():
    model, batches = make("llama"), [inputs("llama")]
    plan = Sparsity(mlp=CHESS(1e-6), qkv=TEAL(1e-6), out=TEAL(1.0))
    setting = calibrate_thresholds(plan, model, batches)
    assert not any(name.endswith(".o") for name in setting.thresholds)
    with setting.apply(model), watching() as seen, torch.no_grad():
        model(**batches[0])
    assert sum(one.kept for name, one in seen.items() if name.startswith("0.")) == 0


def test_the_model_is_left_alone_and_settings_agree():
    model, batches = make("llama"), [inputs("llama")]
    before = dict(vars(model))
    first, second = (calibrate_thresholds(TEAL(0.5), model, batches) for _ in range(2))
    assert first == second
    assert dict(vars(model)) == before
    assert not any(module._forward_pre_hooks or "forward" in vars(module) for module in model.modules())


def test_refusals():
    model, batches = make("llama"), [inputs("llama")]
    with pytest.raises(ValueError, match=r"the method must have thresholds: wina-0\.5 has none"):
        calibrate_thresholds(WINA(0.5), model, batches)
    with pytest.raises(ValueError, match="calibrate_thresholds: there must be inputs"):
        calibrate_thresholds(TEAL(0.5), model, [])
    with pytest.raises(ValueError, match="the model must be in eval mode"):
        calibrate_thresholds(TEAL(0.5), model.train(), batches)
    with pytest.raises(TypeError, match="calibrate_thresholds: method must be one that chooses inputs"):
        calibrate_thresholds("teal-0.5", model, batches)  # pyright: ignore[reportArgumentType]
    assert isinstance(calibrate_thresholds(TEAL(0.5), model.eval(), batches), Calibrated)
