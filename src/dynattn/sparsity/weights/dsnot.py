"""DSnoT: exchanges kept weights for dropped ones, without training, so that a layer's mean output comes back.

For one output with weights w, of which some are dropped, and the statistics of its inputs:

    ε    = Σ over dropped k of w_k mean_k                 what is missing from the mean output
    grow   the dropped k with the largest sign(ε) · w_k mean_k / variance_k
    drop   of the kept k, for N:M those of the grown one's group, the one with the least |w_k| · norm_k;
           with ``signed``, of those with w_k mean_k of the other sign than ε, whose loss brings ε nearer to 0
    ε'   = ε - what was grown + what was dropped

An output is done when |ε| is at most ``least``, when ε changes its sign, after ``cycles`` exchanges, or where there is
nothing left to exchange. An exchange that would make |ε| larger is not made, and ends it as well (this project's rule),
so that |ε| never grows.

Source: "Dynamic Sparse No Training", arXiv:2310.08915. Its text has the condition on the sign; its code leaves that out
unless told otherwise.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import NamedTuple, final

import torch
from torch import Tensor

from dynattn.methods import share
from dynattn.sparsity.weights.calibration import InputStatistics

NAME = rf"(?P<dsnot>-dsnot(?P<unsigned>-unsigned)?(?:-c(?P<cycles>\d+))?(?:-l(?P<least>{share.NUMBER}))?)?"
"""The end of the name of a method that may refine its masks so, as a regular expression."""

_TINY = 1e-30  # in place of a variance of 0, that of an input that never changes


def name_end(refinement: DSnoT | None) -> str:
    """The end of a method's name: ``-dsnot``, with ``-unsigned``, ``-cCYCLES`` and ``-lLEAST`` where they are not the
    defaults; nothing where its masks are not refined."""
    if refinement is None:
        return ""
    cycles = "" if refinement.cycles == 50 else f"-c{refinement.cycles}"
    least = "" if refinement.least == 0.1 else f"-l{share.text(refinement.least)}"
    return f"-dsnot{'' if refinement.signed else '-unsigned'}{cycles}{least}"


@final
@dataclass(frozen=True)
class DSnoT:
    """How masks are refined.

    Args:
        cycles: how many exchanges an output may have; 0 leaves the mask as it was.
        signed: whether only those weights are dropped whose loss brings the mean output nearer.
        least: what may be missing from the mean output, in its own unit.

    Raises:
        TypeError: an argument is of a wrong type.
        ValueError: a number is negative or not finite.
    """

    cycles: int = 50
    signed: bool = True
    least: float = 0.1

    def __post_init__(self) -> None:
        if not isinstance(self.cycles, int) or isinstance(self.cycles, bool):
            raise TypeError(f"DSnoT: cycles must be an int: got {self.cycles!r}; 50 is usual")
        if not isinstance(self.least, float):
            raise TypeError(f"DSnoT: least must be a float: got {self.least!r}; 0.1 is usual")
        if self.cycles < 0 or not 0 <= self.least < 1e6:
            raise ValueError(
                f"DSnoT: cycles must not be negative, and least be from 0 to 1e6: got {self.cycles}, {self.least}; 50 "
                "and 0.1 are usual"
            )

    @classmethod
    def of(cls, match: re.Match[str]) -> DSnoT | None:
        """What a matched name says that ends with :data:`NAME`; None where its masks are not refined."""
        if match["dsnot"] is None:
            return None
        cycles, least = match["cycles"], match["least"]
        return cls(
            50 if cycles is None else int(cycles), not match["unsigned"], 0.1 if least is None else float(least)
        )  # fmt: skip

    def refined(self, weight: Tensor, kept: Tensor, statistics: InputStatistics, m: int | None = None) -> Tensor:
        """A better mask.

        Args:
            weight: (out, in).
            kept: (out, in) bool.
            statistics: of the layer's inputs.
            m: the size of the groups of consecutive inputs that keep their numbers; None for one group of all.

        Returns:
            (out, in) bool, with as many of each output, and of each group.
        """
        terms = _Terms.of(weight, kept, statistics, self.signed)
        kept, missing = kept.clone(), terms.missing(kept)
        sign = missing.sign()
        rows = (missing.abs() > self.least).nonzero().flatten()
        for _ in range(self.cycles):
            if len(rows) == 0:
                break
            found = terms.exchange(rows, kept, m)
            after = missing[rows] - terms.added[rows, found.grown] + terms.added[rows, found.dropped]
            made = found.possible & (after.abs() <= missing[rows].abs())
            rows, grown, dropped, after = (x[made] for x in (rows, found.grown, found.dropped, after))
            kept[rows, grown], kept[rows, dropped], missing[rows] = True, False, after
            rows = rows[(after.abs() > self.least) & (after.sign() == sign[rows])]
        return kept


class _Exchange(NamedTuple):
    """One for each row: where to grow and to drop, and whether there is such a pair."""

    grown: Tensor
    dropped: Tensor
    possible: Tensor


class _Terms(NamedTuple):
    """What decides, (out, in) float64. An output's ε keeps its sign while it goes on, so all of it stays the same."""

    added: Tensor  # to the mean output
    gain: Tensor  # of growing a weight
    cost: Tensor  # of dropping it; inf where it must not be

    @classmethod
    def of(cls, weight: Tensor, kept: Tensor, statistics: InputStatistics, signed: bool) -> _Terms:
        wide = weight.detach().double()
        mean, variance, norm = (
            x.to(wide.device) for x in (statistics.mean, statistics.variance, statistics.norm)
        )  # fmt: skip
        added = wide * mean
        sign = added.masked_fill(kept, 0).sum(1, keepdim=True).sign()
        cost = wide.abs() * norm
        if signed:
            cost = cost.masked_fill(sign * added >= 0, math.inf)
        return cls(added, sign * added / variance.clamp(min=_TINY), cost)

    def missing(self, kept: Tensor) -> Tensor:
        """ε of each output."""
        return self.added.masked_fill(kept, 0).sum(1)

    def exchange(self, rows: Tensor, kept: Tensor, m: int | None) -> _Exchange:
        """The next exchange of some rows; ties go to the lower index."""
        there = kept[rows]
        most, grown = self.gain[rows].masked_fill(there, -math.inf).max(1)
        cost = self.cost[rows].masked_fill(~there, math.inf)
        if m is None:
            least, dropped = cost.min(1)
        else:
            start = grown // m * m  # [rows]
            inside = start[:, None] + torch.arange(m, device=start.device)  # [rows, m]
            last = cost.shape[1] - 1
            of_group = cost.gather(1, inside.clamp(max=last)).masked_fill(inside > last, math.inf)
            least, place = of_group.min(1)
            dropped = start + place
        possible = (most > -math.inf) & (least < math.inf)
        return _Exchange(grown, dropped.clamp(max=cost.shape[1] - 1), possible)
