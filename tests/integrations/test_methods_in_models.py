"""Methods besides N:M through Transformers: by layer, by head, and with a key-value cache."""

from __future__ import annotations

import pytest
import torch

import dynattn
from dynattn import NM, PerHead, PerLayer, TopK

transformers = pytest.importorskip("transformers", reason="needs dynattn[transformers]")

from dynattn.integrations.transformers import Call, observing, register  # noqa: E402
from tests.integrations.test_transformers import assert_equal, cache_of, chunks_of, text, tiny, with_attention  # noqa: E402

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
def test_cache_equals_one_pass(method: str, kind: str, sizes: list[int]) -> None:
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
