"""Masks, caches and heads through Transformers: tiny random models, dense dynattn against ``sdpa``."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import nn

transformers = pytest.importorskip("transformers", reason="needs dynattn[transformers]")

import dynattn  # noqa: E402
from dynattn import NM, PerHead, PerLayer, TopK  # noqa: E402
from dynattn.integrations.transformers import Call, observing, register  # noqa: E402
from tests.integrations.transformers.tiny import (  # noqa: E402
    assert_equal,
    cache_of,
    chunks_of,
    feels_attention,
    text,
    tiny,
    with_attention,
)


@pytest.mark.parametrize("shared_queries", [False, True])
@pytest.mark.parametrize("q_len", [1, 7])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("mask", [None, "bool", "per key", "additive"])
@torch.no_grad()
def test_every_argument_means_what_it_means_to_sdpa(mask, biased, q_len, shared_queries):
    """The function itself against transformers' own, for each way to say what is causal."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    generator = torch.Generator().manual_seed(0)
    query = torch.randn(1 if shared_queries else 3, 4, q_len, 8, generator=generator, dtype=torch.float64)
    key, value = torch.randn(2, 3, 2, 7, 8, generator=generator, dtype=torch.float64)
    allowed = torch.rand(3, 1, 1 if mask == "per key" else q_len, 7, generator=generator) < 0.6
    allowed[..., 0] = True
    attention_mask = None if mask is None else allowed
    if mask == "additive":
        attention_mask = torch.randn(allowed.shape, generator=generator, dtype=torch.float64)
        attention_mask.masked_fill_(~allowed, torch.finfo(torch.float64).min)
    bias = torch.randn(1, 4, q_len, 7, generator=generator, dtype=torch.float64) if biased else None
    for by_module, by_argument in itertools.product((None, False, True), repeat=2):
        module: Any = nn.Module()
        module.num_key_value_groups = 2
        if by_module is not None:
            module.is_causal = by_module
        arguments = (module, query, key, value, attention_mask)
        options = {"scaling": 0.7, "is_causal": by_argument, "position_bias": bias, "sliding_window": 5}
        dense = transformers.AttentionInterface()["dynattn:dense"](*arguments, **options)[0]
        assert dense.shape == (3, q_len, 4, 8)
        assert dense.is_contiguous()
        if shared_queries:  # transformers' own GQA path for one token does not share queries
            arguments = (module, query.expand(3, -1, -1, -1), key, value, attention_mask)
        assert_equal(dense, sdpa_attention_forward(*arguments, **options)[0])


@pytest.mark.parametrize("padding", [None, "left", "right"])
@pytest.mark.parametrize("name", ["bert", "llama", "mistral", "gpt2"])
@torch.no_grad()
def test_one_pass_equals_sdpa(name, padding):
    model, inputs = tiny(name), text(padding=padding)
    feels_attention(model, inputs)
    expected = model(**inputs)[0]
    assert_equal(with_attention(model, "dynattn:dense")(**inputs)[0], expected, inputs["attention_mask"])


@torch.no_grad()
def test_vision_model_equals_sdpa():
    model, inputs = tiny("vit"), {"pixel_values": torch.randn(2, 3, 20, 20, dtype=torch.float64)}
    feels_attention(model, inputs)
    assert_equal(with_attention(model, "dynattn:dense")(**inputs)[0], model(**inputs)[0])


@pytest.mark.parametrize("padding", [None, "left", "right"])
@torch.no_grad()
def test_position_bias_and_cross_attention_equal_sdpa(padding):
    """T5 adds a learned bias to the scores in every layer, on top of padding and causal masks."""
    model, inputs = tiny("t5"), text(padding=padding)
    target = text(length=6)["input_ids"]
    for name in ("encoder", "decoder"):
        bias = getattr(model, name).block[0].layer[0].SelfAttention.relative_attention_bias.weight
        assert bias.abs().max() > 1
    expected = model(**inputs, decoder_input_ids=target).logits
    assert_equal(with_attention(model, "dynattn:dense")(**inputs, decoder_input_ids=target).logits, expected)


@torch.no_grad()
def test_speech_model_equals_sdpa():
    model, target = tiny("whisper"), text(2, 7)["input_ids"]
    inputs = {"input_features": torch.randn(2, 8, 50, dtype=torch.float64), "decoder_input_ids": target}
    feels_attention(model, inputs)
    assert_equal(with_attention(model, "dynattn:dense")(**inputs).logits, model(**inputs).logits)


@pytest.mark.parametrize(
    ("method", "kind"),
    [*itertools.product(["dense", "nm-2-4", "nm-1-3", "nm-1-4-w2-s1"], ["dynamic", "static"])],
)
@pytest.mark.parametrize("sizes", [[9, 1, 1, 1, 1], [5, 4, 4], [13], [1] * 13], ids=str)
@pytest.mark.parametrize("padding", [None, "left"])
@torch.no_grad()
def test_cache_equals_one_pass(method, kind, padding, sizes):
    """Prefill, chunks and single steps keep what one pass keeps: groups lie on the cache's own axis."""
    model = with_attention(tiny("llama"), f"dynattn:{method}")
    inputs = text(padding=padding)
    positions = (inputs["attention_mask"].cumsum(-1) - 1).clamp(min=0)
    expected = model(**inputs, position_ids=positions).logits
    assert_equal(chunks_of(model, inputs, sizes, cache_of(kind, model)), expected, inputs["attention_mask"])


@pytest.mark.parametrize("cache", ["dynamic", "static"])
@pytest.mark.parametrize("name", ["llama", "mistral", "gpt2"])
def test_generation_equals_sdpa(name, cache):
    model, inputs = tiny(name), text(padding="left")
    options = {"max_new_tokens": 8, "do_sample": False, "cache_implementation": cache, "disable_compile": True}
    expected = model.generate(**inputs, **options)
    assert torch.equal(with_attention(model, "dynattn:dense").generate(**inputs, **options), expected)
    sparse = with_attention(model, "dynattn:nm-2-4").generate(**inputs, **options)
    assert sparse.shape == expected.shape


def test_generation_with_cross_attention_equals_sdpa():
    model, inputs = tiny("t5"), text(padding="right")
    options = {"max_new_tokens": 8, "do_sample": False}
    expected = model.generate(**inputs, **options)
    assert torch.equal(with_attention(model, "dynattn:dense").generate(**inputs, **options), expected)


def test_beam_search_equals_sdpa():
    model, inputs = tiny("llama"), text(padding="left")
    options = {"max_new_tokens": 6, "num_beams": 3, "do_sample": False}
    expected = model.generate(**inputs, **options)
    assert torch.equal(with_attention(model, "dynattn:dense").generate(**inputs, **options), expected)


def test_gradients_equal_sdpa():
    model, inputs = tiny("llama"), text(padding="right")
    dense = with_attention(model, "dynattn:dense").train()
    labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
    for m in (model, dense):
        m(**inputs, labels=labels).loss.backward()
    for (name, expected), actual in zip(model.named_parameters(), dense.parameters(), strict=True):
        assert expected.grad is not None, name
        assert_equal(actual.grad, expected.grad)


@torch.no_grad()
def test_compiled_equals_eager():
    inputs = text(padding="left")
    for dtype, tolerance in ((torch.float64, 1e-9), (torch.float32, 1e-4)):
        model = with_attention(tiny("llama"), "dynattn:nm-2-4").to(dtype)
        expected = model(**inputs).logits
        torch._dynamo.reset()
        actual = torch.compile(model, backend="aot_eager", fullgraph=True)(**inputs).logits
        torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance * float(expected.abs().max()))


def test_sparse_keeps_what_the_method_says():
    """The model's output is what the definition gives on the tensors that reached attention."""
    model, calls, inputs = with_attention(tiny("llama"), "dynattn:nm-2-4"), [], text(padding="left")
    outputs = []
    handle = model.model.layers[1].self_attn.o_proj.register_forward_pre_hook(lambda _, args: outputs.append(args[0]))
    with torch.no_grad(), observing(calls.append):
        model(**inputs)
        model(**text())  # no padding, so no mask
    handle.remove()
    assert [call.layer for call in calls] == [0, 1, 0, 1]
    for call, out in zip(calls[1::2], outputs, strict=True):
        assert call.method == NM(2, 4)
        assert call.key.shape[1] == 2
        assert call.causal == (call.attn_mask is None)
        scores = call.scale * call.query @ call.key.repeat_interleave(2, 1).mT
        allowed = torch.ones(13, 13, dtype=torch.bool).tril() if call.causal else call.attn_mask
        scores = scores.masked_fill(~allowed, -torch.inf)
        groups = nn.functional.pad(scores, (0, 3), value=-torch.inf).unflatten(-1, (4, 4))
        threshold = groups.topk(2, dim=-1).values[..., -1:]
        kept = (groups >= threshold).flatten(-2)[..., :13]
        weights = scores.masked_fill(~kept, -torch.inf).softmax(-1).nan_to_num()
        expected = (weights @ call.value.repeat_interleave(2, 1)).transpose(1, 2).flatten(2)
        assert_equal(out, expected)


def test_refuses_what_it_cannot_compute():
    inputs = text()
    with pytest.raises(ValueError, match="cap the scores"):
        with_attention(tiny("gemma2"), "dynattn:dense")(**inputs)
    with pytest.raises(ValueError, match="learned sink"):
        with_attention(tiny("gpt_oss"), "dynattn:dense")(**inputs)
    with pytest.raises(ValueError, match="attention weights"):
        with_attention(tiny("llama"), "dynattn:dense")(**inputs, output_attentions=True)


@pytest.mark.parametrize("asked", ["call", "config"])
def test_weights_are_refused_where_attention_is_not_told_of_them(asked):
    """GPT-2 does not hand the argument on, and records what its attention returns."""
    model, inputs = tiny("gpt2"), text()
    model.set_attn_implementation("eager")
    if asked == "config":
        model.config.output_attentions = True
    model.set_attn_implementation("dynattn:dense")
    with pytest.raises(ValueError, match="GPT2Attention runs in a model that is called with output_attentions; call"):
        model(**inputs, **({"output_attentions": True} if asked == "call" else {}))
    model.config.output_attentions = False
    model(**inputs)


def test_attention_dropout_is_drawn_in_training_alone():
    model = with_attention(tiny("llama", attention_dropout=0.5), "dynattn:nm-2-4")
    inputs = {"input_ids": torch.arange(12).view(1, 12)}
    still = model.eval()(**inputs).logits
    assert torch.equal(still, model(**inputs).logits)
    torch.manual_seed(0)
    first, second = model.train()(**inputs).logits, model(**inputs).logits
    torch.manual_seed(0)
    again = model(**inputs).logits
    assert torch.equal(first, again)
    assert not torch.allclose(first, second)
    assert not torch.allclose(first, still)


def test_refuses_causality_that_nothing_places():
    """A causal layer without a mask, with more keys than queries: top-left or bottom-right?"""
    model = with_attention(tiny("llama"), "dynattn:nm-2-4").model.layers[0].self_attn
    x = torch.randn(1, 3, 32, dtype=torch.float64)
    rotary = torch.ones(1, 3, 8, dtype=torch.float64), torch.zeros(1, 3, 8, dtype=torch.float64)
    cache = transformers.DynamicCache()
    model(x, position_embeddings=rotary, attention_mask=None, past_key_values=cache)
    with pytest.raises(ValueError, match="q_len 3, kv_len 6"):
        model(x, position_embeddings=rotary, attention_mask=None, past_key_values=cache)


DENSE, HALF = NM(1, 1), NM(1, 2)


def seen(model, inputs) -> list[Call]:
    """The calls of one forward."""
    calls: list[Call] = []
    with observing(calls.append), torch.no_grad():
        model(**inputs)
    return calls


@pytest.mark.parametrize("name", ["bert", "llama"])
@torch.no_grad()
def test_layers_have_their_own_methods(name: str) -> None:
    by_layer = PerLayer({range(1): TopK(k=3)}, DENSE)
    (implementation, *_) = register(by_layer)
    model, inputs = tiny(name), text()
    calls = seen(with_attention(model, implementation), inputs)
    assert [(call.layer, call.method) for call in calls] == [(0, TopK(k=3)), (1, DENSE)]
    register("topk-3")
    sparse, dense = (seen(with_attention(model, f"dynattn:{each}"), inputs) for each in ("topk-3", "dense"))
    assert_equal(calls[0].query, dense[0].query)  # nothing comes before the first layer's attention
    assert_equal(calls[1].query, sparse[1].query)
    assert (calls[1].query - dense[1].query).abs().max() > 1e-3


@torch.no_grad()
def test_a_model_that_does_not_number_its_layers() -> None:
    (implementation, *_) = register(PerLayer({range(1): HALF}, DENSE))
    model = with_attention(tiny("vit"), implementation)
    inputs = {"pixel_values": torch.randn(1, 3, 20, 20, dtype=torch.float64)}
    with pytest.raises(ValueError, match=r"has no layer_idx.*; set module.layer_idx on the attention modules"):
        model(**inputs)
    modules = [module for module in model.modules() if type(module).__name__ == "ViTAttention"]
    assert len(modules) == 2
    for layer, module in enumerate(modules):
        module.layer_idx = layer
    assert [call.method for call in seen(model, inputs)] == [HALF, DENSE]


@torch.no_grad()
def test_heads_have_their_own_methods() -> None:
    (implementation, *_) = register(PerHead((HALF, DENSE, DENSE, TopK(k=2))))
    model, inputs = tiny("llama"), text(padding="left")
    for call in seen(with_attention(model, implementation), inputs):
        out = dynattn.attention(call.query, call.key, call.value, call.method, attn_mask=call.attn_mask)
        dense = dynattn.attention(call.query, call.key, call.value, DENSE, attn_mask=call.attn_mask)
        best = dynattn.attention(call.query, call.key, call.value, TopK(k=2), attn_mask=call.attn_mask)
        assert_equal(out[:, 1:3], dense[:, 1:3])
        assert_equal(out[:, 3], best[:, 3])


CACHED = (
    "topk-3",
    "topk-0.3-f2",
    "threshold-0.05",
    "mass-0.7",
    "fixed-0.4",
    "topk-2+nm-1-3",
    "perlayer(dense_1=topk-0.3-f0)",
)
AT_THE_END = ("window-3-s1", "random-0.4-f0", "nm-1-2&window-5", "perhead(2*topk-3_window-3_dense)")


@pytest.mark.parametrize(
    ("method", "kind"),
    [(method, kind) for method in (*CACHED, *AT_THE_END) for kind in ("dynamic", "static")],
)
@pytest.mark.parametrize("sizes", [[9, 1, 1, 1, 1], [5, 4, 4]], ids=str)
@torch.no_grad()
def test_cache_equals_one_pass_for_every_method(method: str, kind: str, sizes: list[int]) -> None:
    register(method)
    model, inputs = with_attention(tiny("llama"), f"dynattn:{method}"), text(padding="left")
    positions = (inputs["attention_mask"].cumsum(-1) - 1).clamp(min=0)
    expected = model(**inputs, position_ids=positions).logits
    assert_equal(chunks_of(model, inputs, sizes, cache_of(kind, model)), expected, inputs["attention_mask"])


@pytest.mark.model
@torch.no_grad()
def test_a_real_model_with_its_first_layers_dense() -> None:
    from dynattn.lab.models import load

    (implementation, *_) = register(PerLayer({range(3): DENSE}, HALF))
    model = load("minilm").model
    inputs = {"input_ids": torch.arange(1000, 1100).unsqueeze(0)}
    by_method = {}
    for name in (implementation, "dynattn:dense", "dynattn:nm-1-2"):
        model.set_attn_implementation(name)
        by_method[name] = seen(model, inputs)
    methods = [call.method for call in by_method[implementation]]
    assert methods == [DENSE] * 3 + [HALF] * (len(methods) - 3)
    assert len(methods) in (6, 12)
    layers, dense, sparse = by_method.values()
    torch.testing.assert_close(layers[3].query, dense[3].query)
    off = [float((calls[-1].query - dense[-1].query).norm() / dense[-1].query.norm()) for calls in (layers, sparse)]
    assert 1e-3 < off[0] < off[1]
