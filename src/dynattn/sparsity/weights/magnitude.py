"""The largest weights of a model, by one threshold for all its linear layers.

    E_ij = 1    for the ⌊keep · N⌉ largest |W_ij| of all N weights; ties go to the earlier layer and the lower index

Nothing is trained afterwards. Source: "The Emergence of Essential Sparsity in Large Pre-trained Models",
arXiv:2306.03805, which calls the point where the score falls off the essential sparsity.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from dynattn.methods import share
from dynattn.sparsity.weights.base import WeightSparsity
from dynattn.sparsity.weights.calibration import InputStatistics

_NAME = re.compile(rf"magnitude-(?P<keep>{share.NUMBER})")


@final
@dataclass(frozen=True)
class Magnitude(WeightSparsity):
    """Keep the largest weights of all linear layers together.

    Args:
        keep: the share of the weights that stay, between 1e-6 and 1.

    Raises:
        TypeError: it is not a float.
        ValueError: it is out of its range.
    """

    keep: float

    def __post_init__(self) -> None:
        share.check("Magnitude", self.keep, "keep")

    @property
    def name(self) -> str:
        """``magnitude-KEEP``."""
        return f"magnitude-{share.text(self.keep)}"

    @classmethod
    def from_name(cls, name: str) -> Magnitude | None:
        match = _NAME.fullmatch(name)
        return cls(float(match["keep"])) if match else None

    def masks(
        self, weights: Mapping[str, Tensor], statistics: Mapping[str, InputStatistics] | None = None
    ) -> dict[str, Tensor]:
        sizes = [weight.abs().flatten() for weight in weights.values()]
        together = torch.cat(sizes)
        count = round(share.exact(self.keep) * len(together))
        if count == 0:
            kept = torch.zeros_like(together, dtype=torch.bool)
        else:
            line = together.kthvalue(len(together) - count + 1).values  # the smallest that stays
            kept = together > line
            ties = (together == line).nonzero().flatten()
            kept[ties[: count - int(kept.sum())]] = True
        parts = kept.split([len(part) for part in sizes])
        return {name: part.view(weight.shape) for (name, weight), part in zip(weights.items(), parts, strict=True)}
