"""Bounds of pages are bounds, by loops, and the choice from them is the one of the definition."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from dynattn.maths import pages


def inputs(kv_len: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Queries of two heads for each of two key heads, and keys."""
    generator = torch.Generator().manual_seed(kv_len)
    query = torch.randn(2, 4, 1, 6, generator=generator, dtype=torch.float64)
    return query.to(dtype), torch.randn(2, 2, kv_len, 6, generator=generator, dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scale", [0.5, -0.7])
def test_a_page_is_worth_at_least_every_score_in_it(dtype: torch.dtype, scale: float) -> None:
    """Head by head, whatever the keys; a page of one key is worth its score."""
    for page in (1, 3, 16):
        query, key = inputs(37, dtype)
        for head in range(4):
            own, shared = query[:, None, head : head + 1], key[:, head // 2 : head // 2 + 1]
            allowed = torch.ones(2, 1, 1, 1, 37, dtype=torch.bool)
            value, some = pages.values(own, shared, allowed, page, scale)
            assert some.all()
            exact = scale * (own.squeeze(2).double() @ shared.double().mT)[:, 0, 0]
            slack = {torch.float64: 1e-12}.get(dtype, 1e-5)
            for j in range(37):
                assert (value[:, 0, 0, j // page].double() >= exact[:, j] - slack).all()
            if page == 1:
                torch.testing.assert_close(value[:, 0, 0].double(), exact, rtol=slack, atol=slack)


def test_boxes_hold_the_largest_and_the_least() -> None:
    _, key = inputs(11)
    found = pages.boxes(key, 4)
    assert found.shape == (2, 2, 3, 12)
    for p in range(3):
        part = key[:, :, 4 * p : 4 * p + 4]
        for d in range(6):
            assert torch.equal(found[:, :, p, d], part[..., d].amax(-1))
            assert torch.equal(found[:, :, p, 6 + d], part[..., d].amin(-1))
    assert pages.boxes(key[:, :, :0], 4).shape == (2, 2, 0, 12)
    assert pages.boxes(key.bfloat16(), 4).dtype == torch.float32


@pytest.mark.parametrize("kv_len", [33, 48, 50])
@pytest.mark.parametrize("count", [1, 2])
def test_a_table_lists_what_the_definition_keeps(kv_len: int, count: int) -> None:
    """With the last page among the best, and besides them; with ties, which go to the lower page; with NaN."""
    query, key = inputs(kv_len)
    tied = key.clone()
    tied[:, :, 16:32] = tied[:, :, :16]
    bad = key.clone()
    bad[0, 1, 3, 2] = math.nan
    late = key.clone()
    late[:, :, -1] = 9 * query[:, ::2, 0] + 9 * query[:, 1::2, 0]
    seen = set()
    for keys in (key, tied, bad, late):
        allowed = torch.ones(2, 2, 2, 1, kv_len, dtype=torch.bool)
        value, some = pages.values(query.unflatten(1, (2, 2)), keys, allowed, 16, 0.5)
        last = torch.full((2, 2, 1), (kv_len - 1) // 16)
        expected = pages.kept(value, some, last, count)[:, :, 0]
        found = pages.table(query, pages.boxes(keys, 16), kv_len, 16, count, 0.5)
        assert found.table.shape == (2, 2, count + 1)
        for b in range(2):
            for h in range(2):
                used = int(found.used[b, h])
                listed = found.table[b, h, : -(-used // 16)].tolist()
                assert listed == expected[b, h].nonzero().flatten().tolist()
                assert used == sum(min(16, kv_len - 16 * p) for p in listed)
                seen.add(len(listed))
    assert seen == {count, count + 1}
