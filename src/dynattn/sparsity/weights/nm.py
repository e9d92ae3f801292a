"""The N best weights of every M along the inputs of each output: one-shot N:M pruning.

    E_ij = 1    for the N largest scores of each group of M consecutive j; ties go to the lower j

    score_ij = |W_ij|                    magnitude
    score_ij = |W_ij| · ‖X_j‖₂           Wanda, over calibration texts

A last group of r < M weights keeps min(N, r). Source: the baseline of arXiv:2102.04010 and of arXiv:2306.03805; Wanda,
arXiv:2306.11695.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, final

from torch import Tensor, nn

from dynattn.maths.selection import largest
from dynattn.sparsity.weights import dsnot, wanda
from dynattn.sparsity.weights.base import WeightSparsity
from dynattn.sparsity.weights.calibration import InputStatistics, required
from dynattn.sparsity.weights.dsnot import DSnoT

_NAME = re.compile(rf"nmweight-(?P<n>\d+)-(?P<m>\d+)(?P<wanda>-wanda)?{dsnot.NAME}")


def best(score: Tensor, n: int, m: int, stride: int = 1) -> Tensor:
    """The N largest of each group of M along the last axis; ties go to the lower index.

    Args:
        score: (rows, length), none of them negative; a NaN counts as the largest.
        n: how many stay of each group.
        m: how many a group has; the last one may have fewer.
        stride: how far apart they stand.

    Returns:
        (rows, length) bool.
    """
    rows, length = score.shape
    tiles = -(-length // (m * stride))
    filled = nn.functional.pad(score, (0, tiles * m * stride - length), value=-1.0)  # what is not there comes last
    groups = filled.view(rows, tiles, m, stride).transpose(2, 3)
    return largest(groups, n).transpose(2, 3).reshape(rows, tiles * m * stride)[:, :length]


@final
@dataclass(frozen=True)
class NMWeights(WeightSparsity):
    """Keep the N best weights of every M along the inputs.

    Args:
        n: how many stay of each group.
        m: how many a group has.
        score: what is best: ``magnitude``, or ``wanda``, which looks at the inputs too.
        refinement: exchanges weights inside of the groups afterwards; None for none.

    Raises:
        TypeError: n or m is not an int.
        ValueError: n is not from 1 to m, or there is no such score.
    """

    n: int
    m: int
    score: Literal["magnitude", "wanda"] = "magnitude"
    refinement: DSnoT | None = None

    def __post_init__(self) -> None:
        if not all(isinstance(value, int) and not isinstance(value, bool) for value in (self.n, self.m)):
            raise TypeError(f"NMWeights: n and m must be ints: got {self.n!r} and {self.m!r}; try NMWeights(2, 4)")
        if not 1 <= self.n <= self.m:
            raise ValueError(f"NMWeights: n must be from 1 to m: got {self.n} of {self.m}; try NMWeights(2, 4)")
        if self.score not in ("magnitude", "wanda"):
            raise ValueError(f"NMWeights: score must be 'magnitude' or 'wanda': got {self.score!r}")

    @property
    def name(self) -> str:
        """``nmweight-N-M``, with ``-wanda`` and the end of :class:`DSnoT`'s."""
        scored = "-wanda" if self.score == "wanda" else ""
        return f"nmweight-{self.n}-{self.m}{scored}{dsnot.name_end(self.refinement)}"

    @property
    def looks_at_inputs(self) -> bool:
        return self.score == "wanda" or self.refinement is not None

    @classmethod
    def from_name(cls, name: str) -> NMWeights | None:
        match = _NAME.fullmatch(name)
        if match is None:
            return None
        scored = "wanda" if match["wanda"] else "magnitude"
        return cls(int(match["n"]), int(match["m"]), scored, DSnoT.of(match))

    def masks(
        self, weights: Mapping[str, Tensor], statistics: Mapping[str, InputStatistics] | None = None
    ) -> dict[str, Tensor]:
        return {name: self._mask(name, weight, statistics) for name, weight in weights.items()}

    def _mask(self, name: str, weight: Tensor, statistics: Mapping[str, InputStatistics] | None) -> Tensor:
        if not self.looks_at_inputs:
            return best(weight.abs(), self.n, self.m)
        of_layer = required(statistics, name, "NMWeights")
        kept = best(weight.abs() if self.score == "magnitude" else wanda.score(weight, of_layer), self.n, self.m)
        return kept if self.refinement is None else self.refinement.refined(weight, kept, of_layer, self.m)
