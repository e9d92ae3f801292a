"""A fixed, strided pattern: every query keeps the same evenly spaced keys. A baseline: it looks at no score.

    kept(i, j) ⇔ ⌈(j + 1) · ratio⌉ > ⌈j · ratio⌉        for ratio = 1/c: j = 0, c, 2c, …

A method that chooses by the input has to keep more mass than this at the same density.

Source: the strided part of the fixed patterns of Sparse Transformers, arXiv:1904.10509.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from dynattn.methods import share
from dynattn.methods.base import Glance, PairMethod, Rows
from dynattn.methods.registry import register

_NAME = re.compile(rf"fixed-(?P<ratio>{share.NUMBER})")


@final
@register
@dataclass(frozen=True)
class Fixed(PairMethod):
    """Keep a share of the keys, evenly spaced, the same for every query; key 0 is among them.

    A query that may attend none of them (behind left padding) gives 0.

    Args:
        ratio: share of the keys, a float above 0, at most 1 (which is dense attention).

    Raises:
        TypeError: ``ratio`` is not a float.
        ValueError: it is out of its range.

    Source: arXiv:1904.10509.
    """

    ratio: float

    def __post_init__(self) -> None:
        share.check("Fixed", self.ratio)
        super().__post_init__()

    @property
    def name(self) -> str:
        """``fixed-0.5``."""
        return f"fixed-{share.text(self.ratio)}"

    @property
    def keeps_everything(self) -> bool:
        """True where the share is 1."""
        return self.ratio == 1

    @classmethod
    def from_name(cls, name: str) -> Fixed | None:
        """The method that ``name`` stands for, or None where it is not a fixed pattern's name."""
        match = _NAME.fullmatch(name)
        return cls(float(match["ratio"])) if match else None

    def glance(self, head_dim: int, itemsize: int) -> Glance:
        """Nothing: the choice needs no score."""
        return Glance(0, 0)

    def choose(self, scores: Tensor, rows: Rows) -> Tensor:
        """By the key's position alone."""
        key = torch.arange(scores.shape[-1], device=scores.device)
        return (share.ceil(self.ratio, key + 1) > share.ceil(self.ratio, key)).expand_as(scores)
