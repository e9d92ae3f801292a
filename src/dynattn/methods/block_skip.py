"""Blocks skipped by running maxima: all scores are computed, and what they show to be small gets no weight.

    largest(i, J) = max_{j ∈ J} s_ij,    so_far(i, J) = max_{J' <= J} largest(i, J')
    dropped(I, J) ⇔ largest(i, J) < so_far(i, J) - margin  for every query i ∈ I that may attend a key of J

I and J are blocks of 8 consecutive queries, ``[0, 8), [8, 16), …``, and of 16 consecutive keys, ``[0, 16), …``. Blocks
of keys come in ascending order, as kernels meet them: the sinks first.

A block that sets a query's largest score is never dropped, so that the kept weights sum to ``e^most`` at least, and a
dropped pair has less than ``e^(most - margin)``. So a query that drops d pairs keeps at least
``1 / (1 + d · e^-margin)`` of its dense weights.

Where a method of whole blocks has dropped some unseen, all of this holds among the pairs that it keeps, as if there
were no others: ``so_far`` runs through the kept blocks alone, and the bound is one of their weights.

Source: BLASST, arXiv:2512.12087; for the rows of a warp, and inside of blocks that an estimate keeps, SpargeAttention,
arXiv:2502.18137. The bound is this library's.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import final

from torch import Tensor

from dynattn.maths.estimate import blocks
from dynattn.methods import grammar, share
from dynattn.methods.base import Choice, Glance, Method, PairMethod, Rows
from dynattn.methods.registry import register

QUERIES, KEYS = 8, 16
"""The size of a block, which is what a kernel has in its registers at once."""

_NAME = re.compile(rf"(?P<alone>blockskip-(?P<margin>{share.NUMBER}))(?:-in\(.+\))?", flags=re.DOTALL)
_MOST = 1000.0


def _of_whole_blocks(among: object) -> PairMethod:
    """The method, where each block of a skip lies in one of its blocks; else an error."""
    if not isinstance(among, Method):
        raise TypeError(
            f"BlockSkip: among must be a method of whole blocks, or None: got {among!r}; "
            "try BlockSkip(4.0, BlockMass(0.98, 64, 'similar'))"
        )
    known = grammar.named("BlockSkip", among)
    if (
        not isinstance(known, PairMethod)
        or known.inside_blocks is not None
        or known.joined is not None
        or known.within is not None
        or not known.whole_blocks
        or int(known.whole_blocks) % KEYS != 0
    ):
        raise ValueError(
            f"BlockSkip: among must keep whole blocks, of a multiple of {KEYS} queries and keys, with all their pairs: "
            f"got {known.name}; try BlockSkip(4.0, BlockMass(0.98, 64, 'similar'))"
        )
    return known


@final
@register
@dataclass(frozen=True)
class BlockSkip(PairMethod):
    """Drop blocks of 8 queries and 16 keys whose scores lie a margin below the largest that each query has met so far.

    All scores are computed; the exponentials and the values of dropped blocks are not. What is dropped depends on the
    order of the keys. A NaN counts as +inf, so that it reaches the output. Blocks are counted from the first query of
    the call and from key 0.

        BlockSkip(4.0, BlockMass(0.98, 64, "similar"))  # what the scores ask for, of blocks that an estimate keeps

    By name ``blockskip-4.0-in(blockmass-0.98-b64-similar)`` (quote it in a shell). This keeps other pairs than
    ``blockmass-0.98-b64-similar&blockskip-4.0``, whose maxima are those of all blocks, so that all are scored.

    Args:
        margin: the distance of scores, in nats, a float between 0 and 1000. A dropped pair has less than ``e^-margin``
            of the weight of the query's largest.
        among: a method of whole blocks, of a multiple of 16 queries and keys. What it drops is not scored, and the rest
            is skipped by maxima of its own. None to score all.

    Raises:
        TypeError: ``margin`` is not a float, or ``among`` no method.
        ValueError: ``margin`` is out of its range, or ``among`` keeps no such blocks.

    Source: arXiv:2512.12087; among chosen blocks, arXiv:2502.18137.
    """

    margin: float
    among: PairMethod | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.margin, float):
            raise TypeError(f"BlockSkip: margin must be a float: got {self.margin!r}; try BlockSkip(6.0)")
        if not 0 <= self.margin <= _MOST:
            raise ValueError(
                f"BlockSkip: margin must be between 0 and {_MOST:g}: got {self.margin}; try BlockSkip(6.0)"
            )
        if self.among is not None:
            object.__setattr__(self, "among", _of_whole_blocks(self.among))
        super().__post_init__()

    @property
    def name(self) -> str:
        """``blockskip-6.0``, and ``-in(…)`` around the name of the method among whose blocks it skips."""
        inside = "" if self.among is None else f"-in({self.among.name})"
        return f"blockskip-{share.text(self.margin)}{inside}"

    @classmethod
    def from_name(cls, name: str) -> BlockSkip | None:
        """The method that ``name`` stands for, or None where it is not a name of this method."""
        match = _NAME.fullmatch(name)
        if not match:
            return None
        margin = float(match["margin"])
        if name == match["alone"]:
            return cls(margin)
        inner = grammar.inside(name, f"{match['alone']}-in")
        return None if inner is None else cls(margin, grammar.part(inner))  # pyright: ignore[reportArgumentType]

    def keeps_all(self, q_len: int, kv_len: int) -> bool:
        """True where there is one block of keys, which holds the largest scores there are."""
        return kv_len <= KEYS and self.among is None

    @property
    def choice(self) -> Choice:
        """By running maxima."""
        return Choice.SKIPS

    @property
    def rows_together(self) -> int:
        """8, or what ``among`` takes together."""
        return QUERIES if self.among is None else math.lcm(QUERIES, int(self.among.rows_together))

    @property
    def looks_at_positions(self) -> bool:
        """True where ``among`` does."""
        return self.among is not None and self.among.looks_at_positions

    @property
    def scored(self) -> PairMethod | None:
        """``among``."""
        return self.among

    def glance(self, head_dim: int, itemsize: int) -> Glance | None:
        """What it costs to choose the blocks that are scored."""
        return None if self.among is None else self.among.glance(head_dim, itemsize)

    def least_mass(self, dropped: int) -> float:
        """The share of its dense weights that a query keeps at least, whatever the scores are, but for rounding; with
        ``among``, of the weights in the blocks that it keeps: nothing is promised of what lies in others.

        Args:
            dropped: how many pairs of the query are dropped of those scored; all but one of them at most.
        """
        return 1 / (1 + dropped * math.exp(-self.margin))

    def choose(self, scores: Tensor, rows: Rows) -> Tensor:
        """The blocks that some query asks for, each with all its pairs."""
        if self.among is None:
            return self._asked(scores)
        seen = self.among.choose(scores, rows)
        return seen & self._asked(scores.masked_fill(~seen, -math.inf))

    def _asked(self, scores: Tensor) -> Tensor:
        """The choice among all pairs whose scores are given."""
        if not scores.numel():
            return scores != -math.inf
        length, kv_len = scores.shape[-2:]
        largest = blocks(scores.masked_fill(scores.isnan(), math.inf), KEYS, 3, -math.inf).amax(-1)
        below = largest.cummax(-1).values - largest > self.margin  # exact where scores are large; False for inf - inf
        asked = ~below & (largest != -math.inf)
        kept = blocks(asked, QUERIES, 2, False).any(3)
        return kept.repeat_interleave(QUERIES, -2).repeat_interleave(KEYS, -1)[..., :length, :kv_len]
