"""The harm of a candidate, against the model's own arithmetic."""

from __future__ import annotations

from typing import Any

import pytest
import torch

pytest.importorskip("transformers")

import transformers

from dynattn.integrations.transformers import assign, attention_modules, register
from dynattn.lab.models import Pretrained
from dynattn.lab.tune import sensitivity
from dynattn.lab.tune.layers import clocked, places, weight

SIZES: dict[str, Any] = {"vocab_size": 64, "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
LLAMA: dict[str, Any] = {"num_key_value_heads": 2, "intermediate_size": 32, "max_position_embeddings": 2048}
WINDOW = "window-8-s1"


def _model(kind: str) -> Pretrained:
    torch.manual_seed(0)
    if kind == "llama":
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES, **LLAMA))
    elif kind == "gpt2":  # Conv1D stores its weights the other way round
        config = transformers.GPT2Config(vocab_size=64, n_embd=48, n_layer=2, n_head=4, n_positions=2048)
        model = transformers.GPT2LMHeadModel(config)
    else:
        model = transformers.BertModel(transformers.BertConfig(**SIZES, intermediate_size=32))
    register()
    return Pretrained(kind, model.eval(), None, "decoder", kind)


def _inputs(length: int) -> dict:
    return {"input_ids": torch.randint(0, 64, (1, length), generator=torch.Generator().manual_seed(1))}


@pytest.mark.parametrize("kind", ["llama", "gpt2", "bert"])
def test_the_output_projection_is_found(kind):
    pretrained = _model(kind)
    found = places(pretrained, _inputs(20))
    assert tuple(found) == attention_modules(pretrained.model)
    names = {module: name for name, module in pretrained.model.named_modules()}
    for module, place in found.items():
        assert place.out is not None
        layer = names[place.layer]
        assert module.startswith(layer)
        assert names[place.out].removeprefix(layer) in (".self_attn.o_proj", ".attn.c_proj", ".attention.output.dense")
        x = torch.randn(5, 48)
        ours, bias = x @ weight(place.out, 48).T, getattr(place.out, "bias", None)
        torch.testing.assert_close(ours if bias is None else ours + bias, place.out(x))


@pytest.mark.parametrize("kind", ["llama", "gpt2", "bert"])
def test_harm_is_the_energy_of_the_error_that_enters_the_residual_stream(kind):
    pretrained, inputs = _model(kind), _inputs(40)
    found = places(pretrained, inputs)
    first = next(iter(found))  # the error of later layers would hold that of the ones before
    seen = _projected(pretrained, found[first], inputs, {})
    lost = _projected(pretrained, found[first], inputs, {first: WINDOW})
    expected = ((lost.out - seen.out).double().pow(2).sum(-1) / seen.residual.double().pow(2).sum(-1)).mean()
    harm = sensitivity.look(pretrained, inputs, found, [WINDOW, "dense"])
    assert len(harm[first][WINDOW]) == 4
    by_head = 0.0
    for head in range(4):
        method = "_".join(WINDOW if head == h else "dense" for h in range(4))
        lost = _projected(pretrained, found[first], inputs, {first: f"perhead({method})"})
        own = ((lost.out - seen.out).double().pow(2).sum(-1) / seen.residual.double().pow(2).sum(-1)).mean().item()
        assert harm[first][WINDOW][head] == pytest.approx(own, rel=1e-3, abs=1e-9)
        by_head += own
    assert harm[first]["dense"] == pytest.approx([0.0] * 4, abs=1e-12)
    assert 0.2 * expected < by_head < 5 * expected  # energies of heads add up but for what they have in common


class _Seen:
    out: torch.Tensor
    residual: torch.Tensor


def _projected(pretrained, place, inputs, methods) -> _Seen:
    """What the projection gives, and the hidden states that the layer gets, in one forward."""
    seen = _Seen()
    assign(pretrained.model, methods)

    def out(module, given, result):
        seen.out = result

    def residual(module, args, kwargs):
        seen.residual = args[0] if args else kwargs["hidden_states"]

    hooks = [place.out.register_forward_hook(out), place.layer.register_forward_pre_hook(residual, with_kwargs=True)]
    with torch.inference_mode():
        pretrained.model(**inputs)
    for hook in hooks:
        hook.remove()
    return seen


def test_long_causal_calls_are_looked_at_in_runs_that_stand_for_all(monkeypatch):
    pretrained, inputs = _model("llama"), _inputs(2048)
    found = places(pretrained, _inputs(20))
    sampled = sensitivity.look(pretrained, inputs, found, [WINDOW, "blocktopk-0.25-b64"])
    monkeypatch.setattr(sensitivity, "_runs", lambda call, last: iter([(call, 0)]))
    whole = sensitivity.look(pretrained, inputs, found, [WINDOW, "blocktopk-0.25-b64"])
    for name in (WINDOW, "blocktopk-0.25-b64"):
        runs, every = (sum(sum(found[module][name]) for module in found) for found in (sampled, whole))
        assert 0.5 < runs / every < 2  # harm falls or grows along the text, by methods; in these weights steeply


def test_the_last_queries_alone_are_looked_at_where_questions_stand(monkeypatch):
    pretrained, inputs = _model("llama"), _inputs(1050)
    found = places(pretrained, _inputs(20))
    seen = []
    original = sensitivity._runs
    monkeypatch.setattr(
        sensitivity, "_runs", lambda call, last: seen.extend(original(call, last)) or original(call, last)
    )
    sensitivity.look(pretrained, inputs, found, [WINDOW], last=True)
    rows = [(start, start + call.query.shape[2]) for call, start in seen[:8]]
    assert rows == [(1024, 1050), *((start, start + 64) for start in range(960, 512, -64))]
    assert all(call.key.shape[2] == stop for (call, _), (_, stop) in zip(seen, rows, strict=False))


def test_means_are_taken_head_by_head():
    one = {"m": {"a": [1.0, 2.0]}}
    other = {"m": {"a": [3.0, 6.0]}}
    assert sensitivity.mean([one, other]) == {"m": {"a": [2.0, 4.0]}}


def test_a_forward_is_clocked_module_by_module():
    pretrained = _model("bert")
    seen = clocked(pretrained, _inputs(30))
    assert tuple(seen.modules) == attention_modules(pretrained.model)
    assert 0 < sum(seen.modules.values()) < seen.forward
    assert 0 < seen.share < 1
    assert pretrained.model.config._attn_implementation == "sdpa"


def test_a_model_without_attention_to_replace_is_refused():
    class Apart(torch.nn.Module):
        def forward(self, x):
            return x

        def set_attn_implementation(self, name):
            pass

    pretrained = Pretrained("apart", Apart(), None, "encoder", "")
    with pytest.raises(ValueError, match="must take its attention from Transformers' interface"):
        places(pretrained, {"x": torch.zeros(1)})
