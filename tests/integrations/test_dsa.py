"""Predictors beside tiny random models: what they choose is what attention keeps, and the model stays as it was."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch

transformers = pytest.importorskip("transformers", reason="needs dynattn[transformers]")

from dynattn.integrations import dsa  # noqa: E402
from dynattn.maths.scores import scores  # noqa: E402
from dynattn.methods.dsa import top_of_runs  # noqa: E402

SIZES = {"vocab_size": 97, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}


def tiny(kind: str) -> Any:
    torch.manual_seed(0)
    if kind == "bert":
        model = transformers.BertModel(transformers.BertConfig(**SIZES, attn_implementation="sdpa"))
    else:
        config = transformers.LlamaConfig(**SIZES, num_key_value_heads=2, use_cache=False, attn_implementation="sdpa")
        model = transformers.LlamaModel(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4)
    return model.eval()


def inputs(kind: str, batch: int = 2, padded: bool = True) -> dict[str, torch.Tensor]:
    ids = torch.randint(1, 97, (batch, 24), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    if padded and kind == "bert":
        mask[1, 17:] = 0
    return {"input_ids": ids, "attention_mask": mask}


@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_everything_kept_is_the_model_itself(kind: str) -> None:
    model = tiny(kind)
    predictors = dsa.new(model, inputs(kind))
    assert len(predictors) == 2
    with torch.no_grad():
        dense = model(**inputs(kind)).last_hidden_state
        with dsa.predicting(model, predictors, ratio=1.0):
            found = model(**inputs(kind)).last_hidden_state
    seen = inputs(kind)["attention_mask"].bool()
    torch.testing.assert_close(found[seen], dense[seen], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_attention_keeps_what_is_predicted(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first layer, seen from outside: its input, its scores, its output."""
    model = tiny(kind)
    predictors = dsa.new(model, inputs(kind), share=0.5, bits=8)
    name, predictor = next(iter(predictors.items()))
    calls: list[Any] = []
    original = dsa.attend.forward

    def spy(module: Any, query: Any, key: Any, value: Any, *rest: Any, **kwargs: Any) -> Any:
        out = original(module, query, key, value, *rest, **kwargs)
        calls.append((module, query, key, value, out[0]))
        return out

    monkeypatch.setattr(dsa.attend, "forward", spy)
    entered: list[torch.Tensor] = []
    hook = model.get_submodule(name).register_forward_pre_hook(
        lambda _, args, kwargs: entered.append(kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]),
        with_kwargs=True,
    )
    with torch.no_grad(), dsa.predicting(model, predictors, ratio=0.3, together=4):
        model(**inputs(kind))
        guessed = predictor(entered[0])
    hook.remove()
    module, query, key, value, out = calls[0]
    assert module is model.get_submodule(name)
    mask = inputs(kind)["attention_mask"].bool()[:, None, None, :]
    s = scores(query, key, mask, kind == "llama", 8**-0.5)
    kept = top_of_runs(guessed, s != -math.inf, 0.3, 4)
    assert 0.1 < kept.float().mean() < 0.4
    value = value.repeat_interleave(4 // value.shape[1], 1)
    expected = (s.masked_fill(~kept, -math.inf).softmax(-1) @ value).transpose(1, 2)
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_training_lowers_the_loss_and_touches_nothing_else(kind: str) -> None:
    model = tiny(kind)
    before = copy.deepcopy(model.state_dict())
    frozen = next(model.parameters()).requires_grad_(False)
    predictors = dsa.new(model, inputs(kind), share=1.0, bits=8)
    losses: list[float] = []
    dsa.fit(model, predictors, [inputs(kind)] * 60, on_step=lambda _, loss: losses.append(loss))
    assert losses[-1] < 0.7 * losses[0]
    assert model.config._attn_implementation == "sdpa"
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert [p.requires_grad for p in model.parameters()] == [p is not frozen for p in model.parameters()]
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_joint_loss_reaches_the_model() -> None:
    model = tiny("bert")
    predictors = dsa.new(model, inputs("bert"))
    with dsa.predicting(model, predictors, ratio=0.5) as losses:
        task = model(**inputs("bert")).last_hidden_state.square().mean()
        assert len(losses) == 2
        (task + 0.1 * torch.stack(losses).sum()).backward()
    query = model.encoder.layer[1].attention.self.query.weight
    assert query.grad is not None
    assert all(p.grad is not None and p.grad.any() for predictor in predictors.values() for p in predictor.parameters())


def test_an_error_inside_leaves_the_model_as_it_was() -> None:
    model = tiny("bert")
    predictors = dsa.new(model, inputs("bert"))
    with pytest.raises(RuntimeError, match="planned"), dsa.predicting(model, predictors, ratio=0.5):
        raise RuntimeError("planned")
    assert model.config._attn_implementation == "sdpa"
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_a_cache_is_refused() -> None:
    model = tiny("llama")
    predictors = dsa.new(model, inputs("llama"))
    with torch.no_grad(), dsa.predicting(model, predictors, ratio=0.5):
        cache = model(**inputs("llama"), use_cache=True).past_key_values
        with pytest.raises(ValueError, match="run without a cache"):
            model(input_ids=torch.ones(2, 1, dtype=torch.long), past_key_values=cache, use_cache=True)


def test_wrong_arguments_are_refused() -> None:
    model = tiny("bert")
    predictors = dsa.new(model, inputs("bert"))
    with pytest.raises(ValueError, match="share must be above 0"):
        dsa.new(model, inputs("bert"), share=0)
    with pytest.raises(ValueError, match="ratio must be above 0"), dsa.predicting(model, predictors, ratio=0):
        pass
    with pytest.raises(ValueError, match="batches must hold at least one"):
        dsa.fit(model, predictors, [])
    wrong = {"nowhere": next(iter(predictors.values()))}
    with pytest.raises(ValueError, match="has no 'nowhere'"), dsa.predicting(model, wrong, ratio=0.5):
        pass
