"""Vertical-slash attention: the last queries of a prompt tell which keys and which distances all queries attend to.

    A           = softmax of the scores of the last queries, 0 for a query that may attend to nothing
    column(J)   = Σ_i Σ_{j ∈ J} A_ij,          over the last queries i
    diagonal(t) = Σ_i Σ_{j ∈ J(i, t)} A_ij,    J(i, t) the block t blocks before that of i
    kept(I, J)  ⇔ column(J) is among the largest, or diagonal(I - J) is, or J holds a key near I or one of the first

I and J are blocks of B consecutive queries and keys, ``[0, B), [B, 2B), …``.

Source: MInference, arXiv:2407.02490, and as The Sparse Frontier, arXiv:2504.17768, executes it. There, columns are
single keys; here they are blocks as diagonals are, so that kernels skip whatever is dropped.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from dynattn.maths import estimate
from dynattn.maths.estimate import Input
from dynattn.maths.selection import largest
from dynattn.methods.base import PairMethod, Rows
from dynattn.methods.blocks import LARGEST, LEAST_WHOLE
from dynattn.methods.registry import register

_NAME = re.compile(r"verticalslash-(?P<columns>\d+)-(?P<slashes>\d+)-b(?P<block>\d+)(?:-l(?P<last>\d+))?")
_LAST = 256
_SINKS = 4
_WHOLE_CALL = 1 << 30  # queries whose choice is made together: all of them


@final
@register
@dataclass(frozen=True)
class VerticalSlash(PairMethod):
    """Keep the blocks of keys, and the diagonals of blocks, that the last queries of the call attend to most.

    **Every query's choice looks at the last queries.** That is right for a prompt that is there as a whole, and wrong
    for training a causal model and for judging one on every token of a text: the choice has seen what is to be
    predicted.

    Each head chooses by itself. The blocks that hold a key less than ``block`` positions from a query, or one of the
    first 4 keys, are kept besides. Ties go to the lower block of keys and to the lower I - J. A head keeps everything
    where a score of its last queries is NaN or +inf, so that it reaches the output.

    Args:
        columns: ⌈columns / block⌉ blocks of keys are kept for all queries.
        slashes: ⌈slashes / block⌉ diagonals of blocks are kept.
        block: queries and keys in a block, between 1 and 1024.
        last: so many queries at the end of the call choose, or all where there are fewer.

    Raises:
        TypeError: an argument is not an int.
        ValueError: an argument is out of its range.

    Source: arXiv:2407.02490.
    """

    columns: int
    slashes: int
    block: int = 64
    last: int = _LAST

    def __post_init__(self) -> None:
        for field, least, most in (
            ("columns", 0, 2**31 - 1), ("slashes", 0, 2**31 - 1), ("block", 1, LARGEST), ("last", 1, 2**31 - 1),
        ):  # fmt: skip
            value = getattr(self, field)
            if not isinstance(value, int) or isinstance(value, bool):
                raise TypeError(f"VerticalSlash: {field} must be an int: got {value!r}; try VerticalSlash(512, 512)")
            if not least <= value <= most:
                raise ValueError(f"VerticalSlash: {field} must be between {least} and {most}: got {value}")
        super().__post_init__()

    @property
    def name(self) -> str:
        """``verticalslash-512-512-b64``, with ``-lLAST`` where it is not 256."""
        last = f"-l{self.last}" if self.last != _LAST else ""
        return f"verticalslash-{self.columns}-{self.slashes}-b{self.block}{last}"

    @classmethod
    def from_name(cls, name: str) -> VerticalSlash | None:
        """The method that ``name`` stands for, or None where it is not a name of this method."""
        match = _NAME.fullmatch(name)
        return cls(**{field: int(part) for field, part in match.groupdict().items() if part}) if match else None

    @property
    def rows_together(self) -> int:
        """More than a call has: all queries follow the last ones."""
        return _WHOLE_CALL

    @property
    def looks_at_positions(self) -> bool:
        """True."""
        return True

    @property
    def whole_blocks(self) -> int:
        """The size of a block where it is at least 8, else 0."""
        return self.block if self.block >= LEAST_WHOLE else 0

    def choose(self, scores: Tensor, rows: Rows) -> Tensor:
        """The kept blocks, each with all its pairs."""
        q_len, kv_len = scores.shape[-2:]
        kept = self._kept(scores[:, :, -self.last :], q_len, rows.offset)
        return kept.repeat_interleave(self.block, -2).repeat_interleave(self.block, -1)[..., :q_len, :kv_len]

    def choose_blocks(self, query: Tensor, key: Tensor, attn_mask: Tensor | None, causal: bool, scale: float) -> Tensor:
        """The same, from the scores of the last queries alone."""
        call, q_len = Input(query, key, attn_mask, causal, scale), query.shape[2]
        numbers = torch.arange(max(0, q_len - self.last), q_len, device=query.device)
        return self._kept(call.scores(numbers), q_len, call.offset)

    def _kept(self, scores: Tensor, q_len: int, offset: int) -> Tensor:
        """The kept blocks, from the scores of the last queries: bool (batch, heads, blocks of queries and of keys)."""
        kv_len, count = scores.shape[-1], scores.shape[-2]
        nobody = (scores == -torch.inf).all(-1, keepdim=True)
        shares = estimate.blocks(scores.softmax(-1).masked_fill(nobody, 0.0), self.block, 3).sum(-1)  # [..., count, J]
        rows, columns = -(-q_len // self.block), shares.shape[-1]
        column = largest(shares.sum(-2), -(-self.columns // self.block))
        i = torch.arange(q_len - count, q_len, device=scores.device) // self.block
        j = torch.arange(columns, device=scores.device)
        sums = shares.new_zeros((*shares.shape[:2], rows + columns))
        at = (i.unsqueeze(-1) - j + columns).flatten()  # of I - J, which is more than -columns
        sums = sums.index_add(-1, at, shares.flatten(-2)) if at.numel() else sums
        diagonal = largest(sums, -(-self.slashes // self.block))
        between = torch.arange(rows, device=scores.device).unsqueeze(-1) - j + columns
        near = estimate.near(range(rows), offset, q_len, kv_len, self.block, self.block, _SINKS).to(scores.device)
        bad = shares.isnan().any(-1).any(-1)[..., None, None]
        return column.unsqueeze(-2) | diagonal[..., between] | near | bad
