"""Blocks skipped by running maxima: all scores are computed, and what they show to be small gets no weight.

    largest(i, J) = max_{j ∈ J} s_ij,    so_far(i, J) = max_{J' <= J} largest(i, J')
    dropped(I, J) ⇔ largest(i, J) < so_far(i, J) - margin  for every query i ∈ I that may attend a key of J

I and J are blocks of 8 consecutive queries, ``[0, 8), [8, 16), …``, and of 16 consecutive keys, ``[0, 16), …``. Blocks
of keys come in ascending order, as kernels meet them: the sinks first.

A block that sets a query's largest score is never dropped, so that the kept weights sum to ``e^most`` at least, and a
dropped pair has less than ``e^(most - margin)``. So a query that drops d pairs keeps at least
``1 / (1 + d · e^-margin)`` of its dense weights.

Source: BLASST, arXiv:2512.12087; for the rows of a warp, SpargeAttention, arXiv:2502.18137. The bound is this
library's.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import final

from torch import Tensor

from dynattn.maths.estimate import blocks
from dynattn.methods import share
from dynattn.methods.base import Choice, PairMethod, Rows
from dynattn.methods.registry import register

QUERIES, KEYS = 8, 16
"""The size of a block, which is what a kernel has in its registers at once."""

_NAME = re.compile(rf"blockskip-(?P<margin>{share.NUMBER})")
_MOST = 1000.0


@final
@register
@dataclass(frozen=True)
class BlockSkip(PairMethod):
    """Drop blocks of 8 queries and 16 keys whose scores lie a margin below the largest that each query has met so far.

    All scores are computed; the exponentials and the values of dropped blocks are not. What is dropped depends on the
    order of the keys. A NaN counts as +inf, so that it reaches the output. Blocks are counted from the first query of
    the call and from key 0.

    Args:
        margin: the distance of scores, in nats, a float between 0 and 1000. A dropped pair has less than ``e^-margin``
            of the weight of the query's largest.

    Raises:
        TypeError: ``margin`` is not a float.
        ValueError: it is out of its range.

    Source: arXiv:2512.12087.
    """

    margin: float

    def __post_init__(self) -> None:
        if not isinstance(self.margin, float):
            raise TypeError(f"BlockSkip: margin must be a float: got {self.margin!r}; try BlockSkip(6.0)")
        if not 0 <= self.margin <= _MOST:
            raise ValueError(
                f"BlockSkip: margin must be between 0 and {_MOST:g}: got {self.margin}; try BlockSkip(6.0)"
            )
        super().__post_init__()

    @property
    def name(self) -> str:
        """``blockskip-6.0``."""
        return f"blockskip-{share.text(self.margin)}"

    @classmethod
    def from_name(cls, name: str) -> BlockSkip | None:
        """The method that ``name`` stands for, or None where it is not a name of this method."""
        match = _NAME.fullmatch(name)
        return cls(float(match["margin"])) if match else None

    @property
    def choice(self) -> Choice:
        """By running maxima."""
        return Choice.SKIPS

    @property
    def rows_together(self) -> int:
        """8."""
        return QUERIES

    def least_mass(self, dropped: int) -> float:
        """The share of its dense weights that a query keeps at least, whatever the scores are, but for rounding.

        Args:
            dropped: how many pairs of the query are dropped; all but one of those allowed at most.
        """
        return 1 / (1 + dropped * math.exp(-self.margin))

    def choose(self, scores: Tensor, rows: Rows) -> Tensor:
        """The blocks that some query asks for, each with all its pairs."""
        if not scores.numel():
            return scores != -math.inf
        length, kv_len = scores.shape[-2:]
        largest = blocks(scores.masked_fill(scores.isnan(), math.inf), KEYS, 3, -math.inf).amax(-1)
        below = largest.cummax(-1).values - largest > self.margin  # exact where scores are large; False for inf - inf
        asked = ~below & (largest != -math.inf)
        kept = blocks(asked, QUERIES, 2, False).any(3)
        return kept.repeat_interleave(QUERIES, -2).repeat_interleave(KEYS, -1)[..., :length, :kv_len]
