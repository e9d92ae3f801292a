"""The pairs of a hash, each once, against the table of all pairs."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dynattn.maths import buckets as module
from dynattn.maths.buckets import hashes, rotations, tiles


def by_tiles(query: Tensor, key: Tensor, buckets: int, forbidden: Tensor | None, causal: bool) -> list[tuple[int, int]]:
    found: list[tuple[int, int]] = []
    for tile in tiles(query, key, buckets, forbidden, causal):
        t, i, j = tile.counts.nonzero().T
        found += zip(tile.rows[t, i].tolist(), tile.columns[t, j].tolist(), strict=True)
    return sorted(found)


def by_table(query: Tensor, key: Tensor, forbidden: Tensor | None, causal: bool) -> list[tuple[int, int]]:
    batch, heads, q_len, _ = query.shape
    kv_len = key.shape[2]
    same = (query.unsqueeze(3) == key.unsqueeze(2)).any(-1)  # [batch, heads, q_len, kv_len]
    if forbidden is not None:
        same &= ~forbidden.unsqueeze(2)
    if causal:
        same &= ~torch.ones(q_len, kv_len, dtype=torch.bool).triu(1 + kv_len - q_len)
    group, i, j = same.view(batch * heads, q_len, kv_len).nonzero().T
    return sorted(zip((group * q_len + i).tolist(), (group * kv_len + j).tolist(), strict=True))


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("q_len", "kv_len", "rounds"), [(5, 5, 1), (40, 40, 2), (7, 70, 3), (40, 9, 2)])
@pytest.mark.parametrize("masked", [False, True])
def test_every_pair_of_a_bucket_once(q_len: int, kv_len: int, rounds: int, masked: bool, causal: bool) -> None:
    generator = torch.Generator().manual_seed(q_len * kv_len)
    query, key = (torch.randint(4, (2, 2, n, rounds), generator=generator) for n in (q_len, kv_len))
    forbidden = torch.rand(2, 1, kv_len, generator=generator) < 0.3 if masked else None
    assert by_tiles(query, key, 4, forbidden, causal) == by_table(query, key, forbidden, causal)


def test_steps_of_few_tiles_give_the_same_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_AT_ONCE", 2 * 32 * 32)
    query, key = torch.zeros(2, 1, 1, 100, 1, dtype=torch.int64)
    assert len(by_tiles(query, key, 2, None, causal=False)) == 100 * 100


def test_a_hash_looks_at_directions_alone() -> None:
    turns = rotations(8, 3, 5, torch.Generator().manual_seed(0))
    x = torch.randn(1, 2, 50, 5, dtype=torch.float64)
    found = hashes(x, turns)
    assert found.shape == (1, 2, 50, 3)
    assert torch.equal(found, hashes(3.5 * x, turns))
    assert torch.equal((found + 4) % 8, hashes(-x, turns))  # opposite vectors fall into opposite buckets
    assert found.unique().tolist() == list(range(8))


def test_no_queries_or_keys_make_no_tiles() -> None:
    empty, some = torch.zeros(1, 1, 0, 1, dtype=torch.int64), torch.zeros(1, 1, 3, 1, dtype=torch.int64)
    assert not list(tiles(empty, some, 2, None, False))
    assert not list(tiles(some, empty, 2, None, False))
