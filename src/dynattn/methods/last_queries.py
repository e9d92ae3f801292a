"""The base of methods whose last queries tell which keys and which distances all queries attend to.

    A           = softmax of the scores of the last queries, 0 for a query that may attend to nothing
    column(J)   = Σ_i Σ_{j ∈ J} A_ij,          over the last queries i
    diagonal(t) = Σ_i Σ_{j ∈ J(i, t)} A_ij,    J(i, t) the block t blocks before that of i
    kept(I, J)  ⇔ column(J) is among the largest, or diagonal(I - J) is, or J holds a key near I or one of the first

I and J are blocks of B consecutive queries and keys, ``[0, B), [B, 2B), …``. A subclass says how many are the largest.
"""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from dynattn.maths import estimate
from dynattn.maths.estimate import Input
from dynattn.methods.base import PairMethod, Rows
from dynattn.methods.blocks import LARGEST, LEAST_WHOLE

_SINKS = 4
_WHOLE_CALL = 1 << 30  # queries whose choice is made together: all of them


class LastQueries(PairMethod):
    """Keeps the blocks of keys, and the diagonals of blocks, that the last queries of the call attend to.

    Each head chooses by itself. The blocks that hold a key less than ``block`` positions from a query, or one of the
    first 4 keys, are kept besides. A head keeps everything where a score of its last queries is NaN or +inf, so that it
    reaches the output.

    Attributes:
        block: queries and keys in a block.
        last: so many queries at the end of the call choose, or all where there are fewer.
    """

    block: int
    last: int

    def check(self, **least: int) -> None:
        """Refuse numbers that are no counts.

        Args:
            least: the smallest value of each field besides ``block`` and ``last``, by its name.

        Raises:
            TypeError: one is not an int.
            ValueError: one is out of its range.
        """
        owner = type(self).__name__
        for field, lowest in {"block": 1, "last": 1, **least}.items():
            value, most = getattr(self, field), LARGEST if field == "block" else 2**31 - 1
            if not isinstance(value, int) or isinstance(value, bool):
                raise TypeError(f"{owner}: {field} must be an int: got {value!r}; leave it out")
            if not lowest <= value <= most:
                raise ValueError(f"{owner}: {field} must be between {lowest} and {most}: got {value}; leave it out")

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

    @abstractmethod
    def best_columns(self, weight: Tensor) -> Tensor:
        """The blocks of keys kept for all queries.

        Args:
            weight: (batch, heads, blocks of keys).

        Returns:
            bool, same shape.
        """

    @abstractmethod
    def best_diagonals(self, weight: Tensor) -> Tensor:
        """The same of diagonals, in rising order of I - J."""

    def _kept(self, scores: Tensor, q_len: int, offset: int) -> Tensor:
        """The kept blocks, from the scores of the last queries: bool (batch, heads, blocks of queries and of keys)."""
        kv_len, count = scores.shape[-1], scores.shape[-2]
        nobody = (scores == -torch.inf).all(-1, keepdim=True)
        shares = estimate.blocks(scores.softmax(-1).masked_fill(nobody, 0.0), self.block, 3).sum(-1)  # [..., count, J]
        rows, columns = -(-q_len // self.block), shares.shape[-1]
        column = self.best_columns(shares.sum(-2))
        i = torch.arange(q_len - count, q_len, device=scores.device) // self.block
        j = torch.arange(columns, device=scores.device)
        sums = shares.new_zeros((*shares.shape[:2], rows + columns))
        at = (i.unsqueeze(-1) - j + columns).flatten()  # of I - J, which is more than -columns
        sums = sums.index_add(-1, at, shares.flatten(-2)) if at.numel() else sums
        diagonal = self.best_diagonals(sums)
        between = torch.arange(rows, device=scores.device).unsqueeze(-1) - j + columns
        near = estimate.near(range(rows), offset, q_len, kv_len, self.block, self.block, _SINKS).to(scores.device)
        bad = shares.isnan().any(-1).any(-1)[..., None, None]
        return column.unsqueeze(-2) | diagonal[..., between] | near | bad
