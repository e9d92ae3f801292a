"""A cache that reads pages alone, against the definition over all keys, whatever happened to the cache before."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("transformers")

from transformers import DynamicCache

import dynattn
from dynattn import Quest
from dynattn.account import counting
from dynattn.integrations.transformers import assign, attend, attention_modules, observing
from dynattn.kv_caches import FullCache, QuestCache
from dynattn.methods import Rows, parse
from tests.kv_caches.oracle import PROMPT, steps

DENSE = parse("dense")
BUDGET, PAGE = 32, 16


class Module(nn.Module):
    """What an attention module of a decoder tells."""

    layer_idx, is_causal = 0, True


class Steps:
    """Random tokens for one layer of a cache, which attends to them as a model would."""

    def __init__(self, cache: Any, dtype: torch.dtype = torch.float32, group: int = 3, batch: int = 2) -> None:
        self.cache, self.dtype, self.group, self.batch = cache, dtype, group, batch
        self.theirs: Any = DynamicCache()  # Transformers' own holds the same
        self.generator = torch.Generator().manual_seed(0)

    def draw(self, heads: int, new: int) -> Tensor:
        return torch.randn(self.batch, heads, new, 8, generator=self.generator).to(self.dtype)

    def fill(self, new: int) -> None:
        self.update(new)

    def update(self, new: int) -> tuple[Tensor, Tensor]:
        parts = self.draw(2, new), self.draw(2, new)
        found, theirs = self.cache.update(*parts, 0), self.theirs.update(*parts, 0)
        assert all(torch.equal(a, b) for a, b in zip(found, theirs, strict=True))
        return found

    def step(self, query: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The output of a token, and that of the definition in float64."""
        query = self.draw(2 * self.group, 1) if query is None else query
        key, value = self.update(1)
        out, _ = attend.forward(Module().eval(), query, key, value, None, method=DENSE, scaling=0.4)
        layer = self.cache.layers[0]
        want = dynattn.attention(query.double(), key.double(), value.double(), layer.quest, scale=0.4)
        return out.transpose(1, 2).double(), want


def close(found: tuple[Tensor, Tensor], dtype: torch.dtype = torch.float32) -> None:
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(*found, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("page", "group"), [(16, 3), (8, 1)])
@torch.no_grad()
def test_every_step_is_the_definition(page: int, group: int, dtype: torch.dtype) -> None:
    """From a short prompt across the borders of pages and of buffers; pages of 8 are gathered."""
    for prompt, room in ((1, 5), (16, 64), (47, 3)):
        run = Steps(QuestCache(BUDGET, page, room), dtype, group)
        run.fill(prompt)
        for _ in range(50 if prompt == 1 else 18):
            close(run.step(), dtype)


@torch.no_grad()
def test_a_query_of_another_dtype_is_refused() -> None:
    run = Steps(QuestCache(BUDGET), torch.bfloat16)
    run.fill(60)
    with pytest.raises((TypeError, ValueError), match="dtype"):
        run.step(run.draw(6, 1).float())


@torch.no_grad()
def test_dropped_pages_and_old_keys_are_not_read() -> None:
    """Once a page is whole its keys are looked at only where it is kept, and its values too."""
    run = Steps(QuestCache(BUDGET), batch=1)
    run.fill(160)
    query = run.draw(6, 1)
    run.step(query)
    layer = run.cache.layers[0]
    kept = Quest(BUDGET).choose(
        0.4 * query @ layer.keys.repeat_interleave(3, 1).mT,
        Rows(query, layer.keys.repeat_interleave(3, 1), layer.held - 1, 0.4, 3),
    )  # fmt: skip
    dropped = ~kept[0, ::3, 0]
    assert dropped.sum() >= 2 * 7 * 16
    whole = layer.keys.double(), layer.values.double()
    layer.keys[0][dropped] = torch.nan
    layer.values[0][dropped] = torch.nan
    key, value = run.draw(2, 1), run.draw(2, 1)
    keys, values = run.cache.update(key, value, 0)
    out, _ = attend.forward(Module().eval(), query, keys, values, None, method=DENSE, scaling=0.4)
    all_keys, all_values = (torch.cat([x, new.double()], 2) for x, new in zip(whole, (key, value), strict=True))
    want = dynattn.attention(query.double(), all_keys, all_values, Quest(BUDGET), scale=0.4)
    torch.testing.assert_close(out.transpose(1, 2).double(), want, rtol=1e-5, atol=1e-5)


CHANGES = {
    "crop in a page": lambda cache: cache.crop(-3),
    "crop across pages": lambda cache: cache.crop(-21),
    "reorder": lambda cache: cache.reorder_cache(torch.tensor([1, 0])),
    "select": lambda cache: cache.batch_select_indices(torch.tensor([1, 1])),
    "copy": copy.deepcopy,
    "pickle": lambda cache: pickle.loads(pickle.dumps(cache)),
}


@pytest.mark.parametrize("change", CHANGES)
@torch.no_grad()
def test_whatever_happens_to_the_cache_the_next_step_is_the_definition(change: str) -> None:
    run = Steps(QuestCache(BUDGET, room=40))
    run.fill(90)
    for _ in range(5):
        close(run.step())
    cache, theirs = run.cache, copy.deepcopy(run.theirs)
    found = CHANGES[change](cache)
    if found is None:
        CHANGES[change](run.theirs)
    run.cache = found or cache
    for _ in range(20):
        close(run.step())
    if found is not None:  # a copy: the other is as it was, and goes on too
        run.cache, run.theirs = cache, theirs
        close(run.step())


@torch.no_grad()
def test_a_cache_that_was_reset_is_as_new() -> None:
    run = Steps(QuestCache(BUDGET))
    run.fill(90)
    run.step()
    filled = run.cache.bytes
    assert filled > run.cache.layers[0].keys.numel() * 2 * 4 + run.cache.layers[0].positions.nbytes
    run.cache.reset()
    run.theirs.reset()
    assert (run.cache.get_seq_length(), run.cache.bytes) == (0, 0)
    run.batch = 1
    run.fill(70)
    for _ in range(3):
        close(run.step())


def _decoded(
    model: Any, cache: Any, ids: Tensor, by: str | None, sizes: list[int], mask: Tensor | None = None
) -> Tensor:
    """Logits, by the cache's own choice, or by a method that modules are given for single tokens."""
    if by is None:
        return steps(model, cache, ids, sizes, "dynattn:dense", mask)
    assign(model, dict.fromkeys(attention_modules(model), by), phase="decode")
    try:
        return steps(model, cache, ids, sizes, "dynattn:assigned", mask)
    finally:
        model.set_attn_implementation("sdpa")


@pytest.mark.parametrize("padded", [False, True])
def test_a_model_decodes_as_by_the_method(model, ids, padded):
    """Over a whole cache of Transformers' own, in a batch, also where some samples are padded on the left."""
    mask = torch.ones_like(ids)
    if padded:
        mask[0, :5] = 0
    sizes = [PROMPT] + [1] * 12
    given = mask if padded else None
    found = _decoded(model, QuestCache(8, 4, room=3), ids, None, sizes, given)
    want = _decoded(model, DynamicCache(config=model.config), ids, "quest-8-p4", sizes, given)
    dense = _decoded(model, DynamicCache(config=model.config), ids, "dense", sizes, given)
    real = slice(5 if padded else 0, None)
    torch.testing.assert_close(found[:, real], want[:, real], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(found[:, -1], dense[:, -1], atol=1e-2)


def test_tokens_together_are_as_tokens_one_by_one(model, ids):
    one = _decoded(model, QuestCache(16), ids, None, [PROMPT] + [1] * 12)
    many = _decoded(model, QuestCache(16), ids, None, [PROMPT] + [3] * 4)
    torch.testing.assert_close(many, one, rtol=1e-4, atol=1e-4)


def test_more_than_64_tokens_are_a_prompt(model):
    ids = torch.randint(1, 97, (1, 120), generator=torch.Generator().manual_seed(2))
    chunks = _decoded(model, QuestCache(16), ids, None, [40, 80])
    whole = _decoded(model, QuestCache(16), ids, None, [120])
    torch.testing.assert_close(chunks, whole, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("beams", [1, 3])
def test_a_budget_of_everything_generates_what_transformers_does(model, ids, beams):
    asked = {"max_new_tokens": 12, "do_sample": False, "num_beams": beams, "attention_mask": torch.ones_like(ids)}
    model.set_attn_implementation("sdpa")
    expected = model.generate(ids, **asked)
    model.set_attn_implementation("dynattn:dense")
    found = model.generate(ids, past_key_values=QuestCache(1024, room=3), **asked)
    assert found.tolist() == expected.tolist()


def test_gradients_are_those_of_the_method(model, ids):
    """While autograd records, and after it has stopped."""
    found = []
    for cache, by in ((QuestCache(8, 4), None), (DynamicCache(config=model.config), "quest-8-p4")):
        if by is None:
            model.set_attn_implementation("dynattn:dense")
        else:
            assign(model, dict.fromkeys(attention_modules(model), by), phase="decode")
        model.zero_grad()
        logits = [model(ids[:1, a:b], past_key_values=cache, use_cache=True).logits for a, b in ((0, 20), (20, 21))]
        logits[1].log_softmax(-1)[..., 3].sum().backward()
        with torch.no_grad():
            after = model(ids[:1, 21:22], past_key_values=cache, use_cache=True).logits
        found.append([after, *(parameter.grad.clone() for parameter in model.parameters())])
    model.set_attn_implementation("sdpa")
    model.zero_grad()
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


@torch.no_grad()
def test_a_step_is_seen_and_counted_as_the_method(model, ids):
    """Of the boxes, and the kept pages."""
    seen: list[Any] = []
    read = []
    long = ids[:1].repeat(1, 6)
    for make in (lambda: QuestCache(16), FullCache):
        cache = make()
        model.set_attn_implementation("dynattn:dense")
        model(long, past_key_values=cache)
        with counting(model) as account, observing(seen.append):
            model(long[:, :1], past_key_values=cache)
        read.append(account.attention.bytes)
    assert [call.method.name for call in seen] == ["quest-16"] * 4 + ["dense"] * 4
    assert 0.1 < read[0] / read[1] < 0.35


def test_what_cannot_be_done_is_refused(model, ids):
    with pytest.raises(ValueError, match="QuestCache: room must be at least 1: got 0"):
        QuestCache(room=0)
    with pytest.raises(ValueError, match="Quest: budget must be a multiple of page"):
        QuestCache(40)
    with pytest.raises(ValueError, match="QuestCache: attention must ask which pages to read"):
        steps(model, QuestCache(16), ids, [PROMPT, 1, 1], "sdpa")
    with pytest.raises(ValueError, match=r"QuestCache: attention must be dense.*got nm-2-4; use 'dynattn:dense'"):
        steps(model, QuestCache(16), ids, [PROMPT, 1], "dynattn:nm-2-4")
