"""What the estimates of blocks share: the form of their results, which blocks have an allowed pair, which lie near.

An estimate is a value for every block (I, J) of B queries and B keys, ``[0, B), [B, 2B), …``: the larger, the more of
the attention of I's queries goes to J's keys. ``softmax_J`` of it estimates the share.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from dynattn.maths.scores import arithmetic_dtype

AT_ONCE = 1 << 22  # so many scores, or values, are held at a time: 16 MB of float32 for each temporary


class Estimated(NamedTuple):
    """Some rows of blocks.

    Attributes:
        rows: the numbers of these rows.
        value: (batch, heads, rows, blocks of keys); of no meaning where no pair of the block is allowed.
        some: whether some pair of the block is allowed, in a shape that broadcasts to that of ``value``.
    """

    rows: slice
    value: Tensor
    some: Tensor


class Input(NamedTuple):
    """A call whose mask is the same for all queries.

    Attributes:
        query: (batch, heads, q_len, head_dim).
        key: (batch, kv_heads, kv_len, head_dim).
        attn_mask: bool, broadcasts to (batch, heads, 1, kv_len), True may be attended; or None.
        causal: forbid keys after the query, aligned bottom-right.
        scale: factor of the scores.
    """

    query: Tensor
    key: Tensor
    attn_mask: Tensor | None
    causal: bool
    scale: float

    @property
    def offset(self) -> int:
        """Position of query 0 on the key axis."""
        return self.key.shape[2] - self.query.shape[2]

    def allowed_keys(self) -> Tensor:
        """bool (batch or 1, heads or 1, kv_len)."""
        kv_len = self.key.shape[2]
        if self.attn_mask is None:
            return torch.ones(1, 1, kv_len, dtype=torch.bool, device=self.key.device)
        mask = self.attn_mask
        return mask.view((1,) * (4 - mask.dim()) + tuple(mask.shape))[:, :, 0].expand(-1, -1, kv_len)

    def steps(self, size: int, width: int, parts: int = 1) -> Iterator[slice]:
        """All rows of blocks, a slice at a time, such that ``AT_ONCE`` values hold ``width`` for each row and each
        head.

        They are cut into at least ``parts`` slices, where there are as many rows.
        """
        batch, heads, q_len, _ = self.query.shape
        rows = -(-q_len // size)
        step = max(1, min(AT_ONCE // max(1, batch * heads * width), -(-rows // parts)))
        return (slice(start, min(start + step, rows)) for start in range(0, rows, step))

    def scores(self, queries: Tensor) -> Tensor:
        """Scores of some queries, given by their numbers: (batch, heads, queries, kv_len), -inf where not allowed."""
        kv_len = seen = self.key.shape[2]
        if self.causal and len(queries):
            seen = min(kv_len, max(0, int(queries.max()) + self.offset + 1))
        return pad(self.first_scores(queries, seen), (0, kv_len - seen), value=-math.inf)

    def first_scores(self, queries: Tensor, seen: int) -> Tensor:
        """The same with the first ``seen`` keys alone."""
        dtype = arithmetic_dtype(self.query.dtype)
        s = by_kv_head(self.query[:, :, queries].to(dtype), self.key[:, :, :seen].to(dtype)).mul_(self.scale)
        if self.attn_mask is not None:
            s.masked_fill_(~self.allowed_keys()[:, :, None, :seen], -math.inf)
        if len(queries):
            self.forbid_later(s, queries.unsqueeze(-1), int(queries.min()))
        return s

    def columns_seen(self, rows: slice, size: int) -> int:
        """How many blocks of keys, from the first on, hold what some query of these rows of blocks may attend."""
        columns = -(-self.key.shape[2] // size)
        if not self.causal:
            return columns
        last = min(rows.stop * size, self.query.shape[2]) + self.offset
        return min(columns, max(0, -(-last // size)))

    def forbid_later(self, s: Tensor, query: Tensor, start: int) -> None:
        """Set the scores of keys behind their queries to -inf, in place, where the call is causal.

        Args:
            s: (..., keys), scores of the first keys.
            query: the numbers of the queries; broadcasts to (..., 1).
            start: the least of them.
        """
        if self.causal:
            first = max(0, start + self.offset + 1)  # keys before it all queries may attend
            behind = torch.arange(first, max(first, s.shape[-1]), device=s.device)
            s[..., first:].masked_fill_(behind > query + self.offset, -math.inf)

    def of_rows(self, rows: slice, size: int) -> Tensor:
        """The numbers of the queries of some rows of blocks."""
        return torch.arange(rows.start * size, min(rows.stop * size, self.query.shape[2]), device=self.query.device)


def by_definition(
    call: Input, size: int, of_scores: Callable[[Tensor, int], tuple[Tensor, Tensor]]
) -> Iterator[Estimated]:
    """An estimate of all blocks from the scores of all pairs, some rows of blocks at a time.

    Args:
        call: queries and keys.
        size: queries and keys in a block.
        of_scores: the estimate's definition.
    """
    for rows in call.steps(size, call.key.shape[2] * size):
        yield Estimated(rows, *of_scores(call.scores(call.of_rows(rows, size)), size))


def by_kv_head(query: Tensor, key: Tensor) -> Tensor:
    """Products of queries (batch, heads, rows, width) and the keys (batch, key heads, columns, width) that they share.

    Returns:
        (batch, heads, rows, columns).
    """
    batch, heads, rows, width = query.shape
    kv_heads, columns = key.shape[1:3]
    together = query.reshape(batch, kv_heads, heads // kv_heads * rows, width)  # a key is not repeated for its group
    return (together @ key.mT).reshape(batch, heads, rows, columns)


def blocks(x: Tensor, size: int, dim: int, fill: float = 0.0) -> Tensor:
    """A dimension cut into blocks. The last block is filled up."""
    missing = -x.shape[dim] % size
    whole = pad(x, (0, 0) * (x.dim() - 1 - dim) + (0, missing), value=fill) if missing else x
    return whole.unflatten(dim, (whole.shape[dim] // size, size))


def in_blocks(scores: Tensor, size: int) -> Tensor:
    """Scores as (batch, heads, I, i, J, j), -inf where filled up."""
    return blocks(blocks(scores, size, scores.dim() - 1, -math.inf), size, scores.dim() - 2, -math.inf)


def some_scored(scores: Tensor, size: int) -> Tensor:
    """Whether a pair of the block is allowed: bool (batch, heads, blocks of queries, blocks of keys)."""
    return (in_blocks(scores, size) != -math.inf).any(-1).any(-2)


def log_sums(scores: Tensor) -> Tensor:
    """``log Σ_j e^{s_j}`` over the last dimension.

    Overwrites the scores: to make temporaries of their size takes longer than the arithmetic.
    """
    most = scores.amax(-1)
    most.masked_fill_(most == -math.inf, 0.0)
    return scores.sub_(most.unsqueeze(-1)).exp_().sum(-1).log_().add_(most)


def log_shares(scores: Tensor) -> Tensor:
    """``log Σ_i Σ_{j ∈ J} softmax(s_i)_j`` over some queries i of each block I.

    Args:
        scores: (batch, heads, I, i, J, j), -inf where not allowed.

    Returns:
        (batch, heads, I, J); +inf for a block with a score that is NaN or +inf, which counts in no other block.
    """
    return log_shares_of_blocks(scores.logsumexp(-1))


def log_shares_of_blocks(of_block: Tensor) -> Tensor:
    """``log Σ_i softmax(t_i)_J`` over some queries i of each block I.

    Args:
        of_block: t, what each query has of each block of keys, (batch, heads, I, i, J), -inf for nothing.

    Returns:
        As :func:`log_shares`.
    """
    bad = of_block.isnan() | (of_block == math.inf)
    of_block = of_block.masked_fill(bad, -math.inf)
    whole = of_block.logsumexp(-1, keepdim=True)
    shares = (of_block - whole).masked_fill(whole == -math.inf, -math.inf)
    return shares.logsumexp(-2).masked_fill(bad.any(-2), math.inf)


def some_allowed(call: Input, size: int) -> Tensor:
    """Whether a pair of the block is allowed: bool (batch or 1, heads or 1, blocks of queries, blocks of keys)."""
    q_len, kv_len = call.query.shape[2], call.key.shape[2]
    position = torch.arange(kv_len, device=call.key.device)
    at = position.where(call.allowed_keys(), kv_len)
    first = pad(at, (0, -kv_len % size), value=kv_len).unflatten(2, (-(-kv_len // size), size)).amin(-1)
    last = torch.full((-(-q_len // size),), kv_len - 1, device=call.key.device)
    if call.causal:
        last = torch.arange(1, len(last) + 1, device=call.key.device) * size
        last = last.clamp(max=q_len) - 1 + call.offset
    return first.unsqueeze(2) <= last.unsqueeze(-1)


def near(rows: range, offset: int, q_len: int, kv_len: int, size: int, window: int, sinks: int) -> Tensor:
    """Blocks that hold a key less than ``window`` positions from one of their queries, or one of the first ``sinks``.

    Args:
        rows: the rows of blocks, each of ``size`` queries; the last may have fewer.
        offset: position of query 0 on the key axis.
        q_len, kv_len: queries and keys in all.
        size: queries and keys in a block.
        window, sinks: 0 for none.

    Returns:
        bool (rows, blocks of keys), on the CPU.
    """
    start = torch.arange(0, kv_len, size, device="cpu")  # of each block of keys
    kept = (start < sinks).expand(len(rows), -1)
    if window:
        first = torch.tensor([i * size for i in rows], dtype=torch.int64, device="cpu").unsqueeze(-1) + offset
        last = (first + size).clamp(max=offset + q_len) - 1
        end = (start + size).clamp(max=kv_len) - 1
        kept = kept | ((start < last + window) & (end > first - window))
    return kept
