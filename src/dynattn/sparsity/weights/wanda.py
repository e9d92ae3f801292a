"""Weights scored with their inputs: a large weight of an input that is always near 0 does little.

    score_ij = |W_ij| · ‖X_j‖₂        E_ij = 1    for the ⌊keep · in⌉ largest of each output; ties go to the lower j

X are the inputs of the layer over calibration texts. Source: "A Simple and Effective Pruning Approach for Large
Language Models", arXiv:2306.11695.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

from torch import Tensor

from dynattn.maths.scores import arithmetic_dtype
from dynattn.maths.selection import largest
from dynattn.methods import share
from dynattn.sparsity.weights import dsnot
from dynattn.sparsity.weights.base import WeightSparsity
from dynattn.sparsity.weights.calibration import InputStatistics, required
from dynattn.sparsity.weights.dsnot import DSnoT

_NAME = re.compile(rf"wanda-(?P<keep>{share.NUMBER}){dsnot.NAME}")


def score(weight: Tensor, statistics: InputStatistics) -> Tensor:
    """``|W_ij| · ‖X_j‖₂``, (out, in), in float32 at least.

    Args:
        weight: (out, in).
        statistics: of the layer's inputs.
    """
    wide = weight.abs().to(arithmetic_dtype(weight.dtype))
    return wide * statistics.norm.to(wide.device, wide.dtype)


@final
@dataclass(frozen=True)
class Wanda(WeightSparsity):
    """Keep the same share of each output's weights, the best by weight and input.

    Args:
        keep: the share of the weights that stay, between 1e-6 and 1.
        refinement: exchanges weights afterwards; None for none.

    Raises:
        TypeError: ``keep`` is not a float.
        ValueError: it is out of its range.
    """

    keep: float
    refinement: DSnoT | None = None

    def __post_init__(self) -> None:
        share.check("Wanda", self.keep, "keep")

    @property
    def name(self) -> str:
        """``wanda-KEEP``, with the end of :class:`DSnoT`'s."""
        return f"wanda-{share.text(self.keep)}{dsnot.name_end(self.refinement)}"

    @property
    def looks_at_inputs(self) -> bool:
        return True

    @classmethod
    def from_name(cls, name: str) -> Wanda | None:
        match = _NAME.fullmatch(name)
        return cls(float(match["keep"]), DSnoT.of(match)) if match else None

    def masks(
        self, weights: Mapping[str, Tensor], statistics: Mapping[str, InputStatistics] | None = None
    ) -> dict[str, Tensor]:
        return {name: self._mask(weight, required(statistics, name, "Wanda")) for name, weight in weights.items()}

    def _mask(self, weight: Tensor, statistics: InputStatistics) -> Tensor:
        kept = largest(score(weight, statistics), round(share.exact(self.keep) * weight.shape[1]))
        return kept if self.refinement is None else self.refinement.refined(weight, kept, statistics)
