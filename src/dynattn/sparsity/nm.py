"""The N largest weights of every M along the inputs of each output: one-shot N:M pruning by magnitude.

    E_ij = 1    for the N largest |W_ij| of each group of M consecutive j; ties go to the lower j

A last group of r < M weights keeps min(N, r). Source: the baseline of arXiv:2102.04010 and of arXiv:2306.03805.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn

from dynattn.sparsity.base import WeightSparsity

_NAME = re.compile(r"nmweight-(?P<n>\d+)-(?P<m>\d+)")


@final
@dataclass(frozen=True)
class NMWeights(WeightSparsity):
    """Keep the N largest weights of every M along the inputs.

    Args:
        n: how many stay of each group.
        m: how many a group has.

    Raises:
        TypeError: an argument is not an int.
        ValueError: n is not from 1 to m.
    """

    n: int
    m: int

    def __post_init__(self) -> None:
        if not all(isinstance(value, int) and not isinstance(value, bool) for value in (self.n, self.m)):
            raise TypeError(f"NMWeights: n and m must be ints: got {self.n!r} and {self.m!r}; try NMWeights(2, 4)")
        if not 1 <= self.n <= self.m:
            raise ValueError(f"NMWeights: n must be from 1 to m: got {self.n} of {self.m}; try NMWeights(2, 4)")

    @property
    def name(self) -> str:
        """``nmweight-N-M``."""
        return f"nmweight-{self.n}-{self.m}"

    @classmethod
    def from_name(cls, name: str) -> NMWeights | None:
        match = _NAME.fullmatch(name)
        return cls(int(match["n"]), int(match["m"])) if match else None

    def masks(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: self._mask(weight) for name, weight in weights.items()}

    def _mask(self, weight: Tensor) -> Tensor:
        outputs, inputs = weight.shape
        filled = nn.functional.pad(weight.abs(), (0, -inputs % self.m), value=-1.0)  # what is not there comes last
        groups = filled.view(outputs, -1, self.m)  # [out, groups, m]
        order = groups.argsort(dim=-1, descending=True, stable=True)[..., : self.n]
        kept = torch.zeros_like(groups, dtype=torch.bool).scatter_(-1, order, True)
        return kept.view(outputs, -1)[:, :inputs]
