"""Masks through Transformers: windows, packed texts, masks of the caller's own, and that masks stay small."""

from __future__ import annotations

import pytest
import torch

transformers = pytest.importorskip("transformers", reason="needs dynattn[transformers]")

from dynattn.integrations.transformers import observing  # noqa: E402
from tests.covering import part  # noqa: E402
from tests.integrations.transformers.tiny import assert_equal, cache_of, chunks_of, text, tiny, with_attention  # noqa: E402


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


@torch.no_grad()
def test_padding_masks_stay_small():
    """A mask that is the same for every query is not spread over (q_len, kv_len)."""
    model, calls = with_attention(tiny("bert"), "dynattn:nm-2-4"), []
    with observing(calls.append):
        model(**text(padding="right"))
    assert {tuple(call.attn_mask.shape) for call in calls} == {(3, 1, 1, 13)}
