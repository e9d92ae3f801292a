"""Masks through Transformers: windows, packed texts, masks of the caller's own, and that masks stay small."""

from __future__ import annotations

from typing import Any

import pytest
import torch

transformers = pytest.importorskip("transformers", reason="needs dynattn[transformers]")

from dynattn.integrations.transformers import observing  # noqa: E402
from tests.covering import part  # noqa: E402
from tests.integrations.transformers.tiny import (  # noqa: E402
    SMALL,
    TOKENS,
    assert_equal,
    cache_of,
    chunks_of,
    text,
    tiny,
    with_attention,
)


@pytest.mark.parametrize(
    ("free", "padding"),
    part([(0, "left"), (1, None), (0, None), (7, "left"), (1, "left"), (7, None)], 6),
)
@torch.no_grad()
def test_a_window_ends_at_the_query_in_a_compiled_static_cache(free, padding):
    """The free slots behind the query are not counted, and one graph serves all steps of one size."""
    model, inputs = with_attention(tiny("llama"), "dynattn:nm-1-4-w2-s1"), text(padding=padding)
    positions = (inputs["attention_mask"].cumsum(-1) - 1).clamp(min=0)
    expected = model(**inputs, position_ids=positions).logits
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    actual = chunks_of(compiled, inputs, [9, 1, 1, 1, 1], cache_of("static", model, length=13 + free))
    assert_equal(actual, expected, inputs["attention_mask"])


@torch.no_grad()
def test_a_window_ends_at_the_query_where_padding_is_on_the_right():
    """The last tokens of all samples are padding: a window must not move to the last real token for it."""
    model, inputs = with_attention(tiny("llama"), "dynattn:nm-1-4-w2-s1"), text()
    inputs["attention_mask"][:, 11:] = 0
    expected = model(**inputs).logits
    actual = [chunks_of(model, inputs, [7, 6], cache_of(kind, model)) for kind in ("dynamic", "static")]
    for each in actual:
        assert_equal(each, expected, inputs["attention_mask"])


@pytest.mark.parametrize("kind", ["dynamic", "static"])
@pytest.mark.parametrize("sizes", [[9, 1, 1, 1, 1], [5, 4, 4], [13]], ids=str)
@torch.no_grad()
def test_the_models_own_sliding_window(sizes, kind):
    """The window limits the mask, and its cache drops old keys: dense equals sdpa at every step."""
    model, inputs = tiny("mistral"), text(padding="left")
    dense = with_attention(model, "dynattn:dense")
    expected = chunks_of(model, inputs, sizes, cache_of(kind, model))
    actual = chunks_of(dense, inputs, sizes, cache_of(kind, dense))
    assert_equal(actual, expected, inputs["attention_mask"])


@torch.no_grad()
def test_packed_sequences_do_not_see_each_other():
    """Position ids that start anew mark packed texts; Transformers makes the mask from them."""
    model, ids = tiny("llama"), text(1, 13)["input_ids"]
    packed = {"input_ids": ids, "position_ids": torch.cat([torch.arange(8), torch.arange(5)]).unsqueeze(0)}
    for method in ("dense", "nm-2-4"):
        other = with_attention(model, f"dynattn:{method}")
        logits = other(**packed, use_cache=False).logits
        assert_equal(logits[:, :8], other(ids[:, :8]).logits)
        if method == "dense":
            assert_equal(logits, model(**packed, use_cache=False).logits)


@torch.no_grad()
def test_custom_masks():
    """4-dimensional masks reach attention as they are: bool ones, and additive ones with the lowest number."""
    model = tiny("llama")
    dense = with_attention(model, "dynattn:dense")
    ids = text()["input_ids"]
    allowed = torch.rand(3, 1, 13, 13, generator=torch.Generator().manual_seed(2)) < 0.5
    allowed |= torch.eye(13, dtype=torch.bool)
    added = torch.zeros(3, 1, 13, 13, dtype=torch.float64).masked_fill(~allowed, torch.finfo(torch.float64).min)
    for mask in (allowed, added):
        assert_equal(dense(ids, attention_mask=mask).logits, model(ids, attention_mask=mask).logits)


@pytest.mark.parametrize("method", ["dense", "nm-2-4"])
@torch.no_grad()
def test_masks_of_whole_numbers_are_refused(method):
    """They would be added to the scores, and forbid nothing."""
    model = with_attention(tiny("llama"), f"dynattn:{method}")
    mask = torch.ones(3, 1, 13, 13, dtype=torch.int64).tril()
    with pytest.raises(TypeError, match=r"LlamaAttention passes torch.int64; .*pass attention_mask.bool\(\)"):
        model(text()["input_ids"], attention_mask=mask)


def _two_ways(kind: str) -> Any:
    """A model with causal masks, whose modules say that they are not causal."""
    torch.manual_seed(0)
    if kind == "gemma":  # as in PaliGemma
        config = transformers.GemmaConfig(
            **TOKENS, **SMALL, num_key_value_heads=2, head_dim=8, use_bidirectional_attention=True
        )
        return transformers.GemmaModel(config).double().eval()
    return transformers.Aimv2TextModel(transformers.Aimv2TextConfig(vocab_size=97, **SMALL)).double().eval()


@pytest.mark.parametrize("kind", ["gemma", "aimv2"])
@torch.no_grad()
def test_causality_is_kept_where_no_module_says_it(kind):
    """Transformers' own sdpa sees later tokens here, unless there is padding."""
    model, inputs = _two_ways(kind), text()
    expected = with_attention(model, "eager")(**inputs)[0]
    dense, sparse = (with_attention(model, f"dynattn:{method}") for method in ("dense", "nm-2-4"))
    torch.testing.assert_close(dense(**inputs)[0], expected, rtol=1e-5, atol=1e-5)  # its softmax is float32
    later = {**inputs, "input_ids": inputs["input_ids"].clone()}
    later["input_ids"][:, -1] = 1
    assert_equal(sparse(**later)[0][:, :-1], sparse(**inputs)[0][:, :-1])


@torch.no_grad()
def test_a_config_that_asks_for_both_directions_is_heard():
    """CLIP tells its attention that it is causal, also where masks are made for both directions."""
    torch.manual_seed(0)
    model = transformers.CLIPTextModel(transformers.CLIPTextConfig(vocab_size=97, **SMALL)).double().eval()
    model.config.is_causal = False
    inputs = text()
    expected = with_attention(model, "eager")(**inputs)[0]
    torch.testing.assert_close(with_attention(model, "dynattn:dense")(**inputs)[0], expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_padding_masks_stay_small():
    """A mask that is the same for every query is not spread over (q_len, kv_len)."""
    model, calls = with_attention(tiny("bert"), "dynattn:nm-2-4"), []
    with observing(calls.append):
        model(**text(padding="right"))
    assert {tuple(call.attn_mask.shape) for call in calls} == {(3, 1, 1, 13)}


@torch.no_grad()
def test_export_leaves_batch_and_length_open() -> None:
    model = with_attention(tiny("llama", num_hidden_layers=1, use_cache=False), "dynattn:nm-2-4")
    batch, length = torch.export.Dim("batch", min=2, max=64), torch.export.Dim("length", min=2, max=64)
    given = text(2, 9, padding="right")
    shapes = {name: {0: batch, 1: length} for name in given}
    program = torch.export.export(model, (), kwargs=given, dynamic_shapes=shapes).module()
    for inputs in (text(3, 13, padding="left"), text(5, 4)):
        assert_equal(program(**inputs)[0], model(**inputs)[0], inputs["attention_mask"])
