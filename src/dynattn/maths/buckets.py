"""Pairs that fall into the same bucket of a locality-sensitive hash, and sums over them, tile by tile.

    h_r(x) = argmax over the buckets of [x R_r, -x R_r],    R_r ~ N(0, 1) of (head_dim, buckets / 2)
    S = {(i, j): h_r(q_i) = h_r(k_j) in a round r}

The hash looks at directions alone, and at one vector at a time: whether a pair is in S does not depend on what else is
in the sequence. Queries and keys are sorted by bucket and cut into tiles of 32, so that the work is that of S, up to
the tiles' edges, and runs as small matrix products.

Source: angular hashing by random rotations, arXiv:1509.02897; several rounds in attention, arXiv:2001.04451.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

_TILE = 32
_AT_ONCE = 2**21  # pairs in a step, which takes 8 MB for each float32 number that is computed for a pair


class PairTiles(NamedTuple):
    """Some tiles of pairs: row and column indices over all batches and heads, and which of the pairs count.

    Attributes:
        rows: (tiles, 32), queries; 0 in places left empty.
        columns: (tiles, 32), keys; 0 in places left empty.
        counts: bool (tiles, 32, 32): the pair is in S, and in no tile that came before.
    """

    rows: Tensor
    columns: Tensor
    counts: Tensor


def rotations(buckets: int, rounds: int, head_dim: int, generator: torch.Generator) -> Tensor:
    """The R of the equation, (rounds, head_dim, buckets / 2), float64 on the CPU."""
    return torch.randn(rounds, head_dim, buckets // 2, dtype=torch.float64, generator=generator, device="cpu")


def hashes(x: Tensor, rotations: Tensor) -> Tensor:
    """The buckets of vectors.

    Args:
        x: (batch, heads, length, head_dim).
        rotations: (rounds, head_dim, buckets / 2).

    Returns:
        int64 (batch, heads, length, rounds).
    """
    along = torch.einsum("bhnd,rdk->bhnrk", x.detach(), rotations)
    return torch.cat((along, -along), dim=-1).argmax(-1)


def tiles(
    query_hash: Tensor, key_hash: Tensor, buckets: int, forbidden: Tensor | None, causal: bool
) -> Iterator[PairTiles]:
    """All pairs of S that are allowed, each once.

    Args:
        query_hash: (batch, heads, q_len, rounds).
        key_hash: (batch, heads, kv_len, rounds).
        buckets: number of them in a round.
        forbidden: bool, broadcasts to (batch, heads, kv_len): keys that no query may see; None for none.
        causal: forbid keys ``j > i + kv_len - q_len``.

    Yields:
        Tiles of pairs; indices run over batch, heads and length, flattened.
    """
    q_len, kv_len = query_hash.shape[2], key_hash.shape[2]
    if not query_hash.numel() or not key_hash.numel():
        return
    queries, keys = query_hash.flatten(0, 2), key_hash.flatten(0, 2)  # [all, rounds]
    excluded = None if forbidden is None else forbidden.expand(key_hash.shape[:3]).flatten()
    for current in range(query_hash.shape[3]):
        rows = _Sorted(queries[:, current], q_len, buckets, None)
        columns = _Sorted(keys[:, current], kv_len, buckets, excluded)
        across = columns.tiles
        ends = (rows.tiles * across).cumsum(0)
        for start in range(0, int(ends[-1]), _AT_ONCE // _TILE**2):
            place = torch.arange(start, min(start + _AT_ONCE // _TILE**2, int(ends[-1])), device=keys.device)
            bucket = torch.searchsorted(ends, place, right=True)
            within = place - (ends - rows.tiles * across)[bucket]
            r, r_there = rows.tile(bucket, within // across[bucket])
            c, c_there = columns.tile(bucket, within % across[bucket])
            counts = r_there.unsqueeze(2) & c_there.unsqueeze(1)
            for earlier in range(current):
                counts &= queries[r, earlier].unsqueeze(2) != keys[c, earlier].unsqueeze(1)
            if causal:
                counts &= (r % q_len + kv_len - q_len).unsqueeze(2) >= (c % kv_len).unsqueeze(1)
            yield PairTiles(r, c, counts)


class _Sorted:
    """The queries or the keys, in the order of their buckets. Every batch and head has buckets of its own."""

    def __init__(self, hashed: Tensor, length: int, buckets: int, excluded: Tensor | None) -> None:
        group = torch.arange(hashed.shape[0], device=hashed.device) // length
        bucket = group * buckets + hashed
        count = hashed.shape[0] // length * buckets
        if excluded is not None:
            bucket = bucket.masked_fill(excluded, count)  # a bucket after all others, in which no query is
        self.order = bucket.sort(stable=True).indices
        sizes = bucket.bincount(minlength=count)[:count]
        self._end = sizes.cumsum(0)
        self._start = self._end - sizes
        self.tiles = (sizes + _TILE - 1) // _TILE

    def tile(self, bucket: Tensor, number: Tensor) -> tuple[Tensor, Tensor]:
        """Members of a bucket's tile, (tiles, 32), and whether there is one."""
        place = (self._start[bucket] + number * _TILE).unsqueeze(1) + torch.arange(_TILE, device=bucket.device)
        there = place < self._end[bucket].unsqueeze(1)
        return self.order[place.clamp(max=self.order.shape[0] - 1)], there
