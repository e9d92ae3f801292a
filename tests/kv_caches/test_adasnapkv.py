"""Ada-SnapKV's cache: heads of a layer share room, against loops; and the layer with heads of different lengths."""

from __future__ import annotations

import copy
import math
from typing import cast

import pytest
import torch

pytest.importorskip("transformers")

from dynattn.integrations.transformers import register
from dynattn.kv_caches import AdaSnapKVCache, by_head
from dynattn.kv_caches.adasnapkv import shared
from dynattn.ops.one_query import ragged_attention
from tests.kv_caches import choices
from tests.kv_caches.choices import SNAPKV, held_of
from tests.kv_caches.oracle import PROMPT, steps


@pytest.mark.parametrize(
    ("change", "padding"),
    [({}, 0), ({}, 6), ({"pool": 1, "recent": 1, "sinks": 1}, 0), ({"recent": 8}, 0), ({"capacity": 20}, 6)],
)
def test_heads_share_their_room(model, ids, change, padding):
    options = {**SNAPKV, **change}
    cache = AdaSnapKVCache(**options)
    mask = torch.ones_like(ids)
    mask[0, :padding] = 0
    steps(model, cache, ids, [PROMPT], "dynattn:dense", mask if padding else None)
    given = mask[:, :PROMPT] if padding else None
    lengths = set()
    for layer, call in zip(cache.layers, choices.calls_of(model, ids[:, :PROMPT], given), strict=True):
        expected = [choices.adasnapkv(call, sample, first, **options) for sample, first in ((0, padding), (1, 0))]
        assert [held_of(layer, sample) for sample in (0, 1)] == expected
        longest = max(len(held) for sample in expected for held in sample)
        assert layer.held == longest
        assert layer.keys.untyped_storage().nbytes() == 2 * 2 * (longest + layer.room) * 8 * 4
        lengths |= {len(held) for held in expected[1]}
        assert sum(map(len, expected[1])) == 2 * options["capacity"]
        assert (layer.positions.diff(dim=-1) >= 0).all()
    assert len(lengths) > 1 or options["recent"] + options["sinks"] == options["capacity"]


def test_room_is_shared_by_rank_and_some_is_safe():
    """By hand: the second head's scores are all higher, and the first keeps its two best."""
    rank = torch.tensor([[[1.0, 4.0, 3.0, 2.0], [9.0, 5.0, 8.0, 6.0]]])
    assert shared(rank, capacity=3, safe=2).tolist() == [[[False, True, True, False], [True, True, True, True]]]
    assert shared(rank, capacity=2, safe=2).tolist() == [[[False, True, True, False], [True, False, True, False]]]
    padded = rank.masked_fill(rank < 3, -math.inf)
    assert shared(padded, capacity=4, safe=3).tolist() == [[[False, True, True, False], [True] * 4]]


def test_a_prompt_that_fits_is_not_cut(model, ids):
    prompt = ids[:, :PROMPT]
    asked = {"max_new_tokens": 3, "do_sample": False, "attention_mask": torch.ones_like(prompt)}
    model.set_attn_implementation("dynattn:dense")
    expected = model.generate(prompt, **asked)
    cache = AdaSnapKVCache(PROMPT, recent=4)
    assert model.generate(prompt, past_key_values=cache, **asked).tolist() == expected.tolist()
    assert not cache.layers[0].ragged


def _fits(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many tokens had been seen when masks were fitted."""
    seen: list[int] = []
    fit = by_head.HeadLayer.fit

    def noted(self, mask):
        seen.append(self.seen)
        return fit(self, mask)

    monkeypatch.setattr(by_head.HeadLayer, "fit", noted)
    return seen


def _counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many queries each call of the kernel had."""
    calls: list[int] = []

    def counted(query, *args):
        calls.append(query.shape[2])
        return ragged_attention(query, *args)

    monkeypatch.setattr(by_head, "ragged_attention", counted)
    return calls


@pytest.mark.parametrize("padding", [0, 4])
def test_a_token_alone_is_read_by_the_kernel_and_gives_what_the_mask_gives(model, ids, padding, monkeypatch):
    calls, mask = _counted(monkeypatch), torch.ones_like(ids)
    mask[0, :padding] = 0
    given = mask if padding else None
    sizes = [PROMPT, 1, 1, 1]
    fits = _fits(monkeypatch)
    found = steps(model, AdaSnapKVCache(**SNAPKV), ids, sizes, "dynattn:dense", given)
    assert calls == [1] * 3 * len(model.model.layers)
    assert fits == [PROMPT] * len(model.model.layers)  # no mask is made for the kernel
    monkeypatch.setattr(by_head.HeadLayer, "attend", lambda self, call: None)
    expected = steps(model, AdaSnapKVCache(**SNAPKV), ids, sizes, "dynattn:dense", given)
    assert len(calls) == 3 * len(model.model.layers)
    torch.testing.assert_close(found[:, padding:], expected[:, padding:], rtol=1e-4, atol=1e-4)


def _swapped(cache: AdaSnapKVCache) -> AdaSnapKVCache:
    cache.reorder_cache(cast(torch.LongTensor, torch.tensor([1, 0])))
    return cache


def _cropped_and_on(cache: AdaSnapKVCache) -> AdaSnapKVCache:
    for layer in cache.layers:
        layer.crop(-1, keep_room=True)
    return cache


@pytest.mark.parametrize("change", [_swapped, copy.deepcopy, _cropped_and_on])
def test_where_heads_begin_follows_what_becomes_of_the_cache(model, ids, change, monkeypatch):
    """A step by the kernel before and after it, against steps by the mask."""
    calls, found = _counted(monkeypatch), []
    for kernel in (True, False):
        if not kernel:
            monkeypatch.setattr(by_head.HeadLayer, "attend", lambda self, call: None)
        cache = AdaSnapKVCache(**SNAPKV)
        steps(model, cache, ids, [PROMPT, 1], "dynattn:dense")
        cache = change(cache)
        with torch.no_grad():
            found.append(model(ids[:, PROMPT + 2 : PROMPT + 3], past_key_values=cache, use_cache=True).logits)
    assert len(calls) == 2 * len(model.model.layers)
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-4)


def test_where_heads_begin_is_counted_once(model, ids, monkeypatch):
    counted = []
    find = by_head.HeadLayer._find_begins
    monkeypatch.setattr(by_head.HeadLayer, "_find_begins", lambda self: counted.append(self) or find(self))
    steps(model, AdaSnapKVCache(**SNAPKV), ids, [PROMPT, 1, 1, 1], "dynattn:dense")
    assert len(counted) == len(model.model.layers)


def test_what_the_kernel_cannot_tell_is_left_to_the_mask(model, ids, monkeypatch):
    """Several tokens at once, a mask that forbids a token that is held, a method that keeps less, gradients, a crop."""
    calls = _counted(monkeypatch)
    cache = AdaSnapKVCache(**SNAPKV)
    steps(model, cache, ids, [PROMPT, 3], "dynattn:dense")
    hidden = torch.ones(2, PROMPT + 4, dtype=torch.int64)
    hidden[:, PROMPT] = 0
    after = {"past_key_values": cache, "use_cache": True}
    with torch.no_grad():
        model(ids[:, PROMPT + 3 : PROMPT + 4], attention_mask=hidden, **after)
        model.set_attn_implementation(register("nm-1-2")[0])
        model(ids[:, PROMPT + 4 : PROMPT + 5], **after)
    model.set_attn_implementation("dynattn:dense")
    model(ids[:, PROMPT + 5 : PROMPT + 6], **after)
    assert calls == []
    cache = AdaSnapKVCache(**SNAPKV)
    steps(model, cache, ids, [PROMPT, 2], "dynattn:dense")
    cache.crop(-1)
    assert steps(model, cache, ids[:, PROMPT:], [1, 1], "dynattn:dense").isfinite().all()


def test_its_errors_name_it():
    with pytest.raises(ValueError, match="AdaSnapKVCache: window must be at least 1"):
        AdaSnapKVCache(window=0)
