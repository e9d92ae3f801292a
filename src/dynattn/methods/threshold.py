"""Threshold attention: each query keeps the keys to which dense attention gives a weight above a threshold.

    kept(i, j) ⇔ softmax(s_i)_j > t,  or  j is the key with the largest score of row i

The number kept follows the row: few where attention is sharp, many where it is flat. At most 1/t + 1 pairs a row are
kept, and what is lost is at most t for each key dropped: ``1 - kept mass ≤ t · dropped``.

Source: the exact form of the thresholds that DSA, arXiv:2110.11299, and LTP, arXiv:2107.00910, apply to predictions and
to tokens.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from dynattn.methods import share
from dynattn.methods.base import Choice, PairMethod, RowRule, Rows
from dynattn.methods.registry import register

_NAME = re.compile(rf"threshold-(?P<least>{share.NUMBER})")


@final
@register
@dataclass(frozen=True)
class Threshold(PairMethod):
    """Keep the pairs whose dense softmax weight exceeds a threshold, and always the largest of a row.

    The largest is the one of the lowest key index where several tie. A NaN counts as the largest: it is kept, and
    reaches the output.

    Args:
        least: the threshold, a float, at least 0 and below 1. A weight equal to it is dropped.

    Raises:
        TypeError: ``least`` is not a float.
        ValueError: it is out of its range.

    Source: see this file.
    """

    least: float

    def __post_init__(self) -> None:
        if not isinstance(self.least, float):
            raise TypeError(f"Threshold: least must be a float: got {self.least!r}; try Threshold(0.01)")
        if not (0 <= self.least < 1 and math.copysign(1, self.least) > 0):
            raise ValueError(f"Threshold: least must be at least 0 and below 1: got {self.least}; try Threshold(0.01)")
        super().__post_init__()

    @property
    def name(self) -> str:
        """``threshold-0.01``."""
        return f"threshold-{share.text(self.least)}"

    @classmethod
    def from_name(cls, name: str) -> Threshold | None:
        """The method that ``name`` stands for, or None where it is not a threshold's name."""
        match = _NAME.fullmatch(name)
        return cls(float(match["least"])) if match else None

    @property
    def choice(self) -> Choice:
        """Each row by its own scores."""
        return Choice.ROWS

    def row_rule(self) -> RowRule:
        """By weight."""
        return RowRule(weight=self.least)

    def choose(self, scores: Tensor, rows: Rows) -> Tensor:
        """The weights above the threshold, and the largest of each row."""
        if scores.shape[-1] == 0:
            return torch.zeros_like(scores, dtype=torch.bool)
        kept = scores.softmax(-1) > self.least  # False in rows with NaN, or with nothing allowed
        return kept.scatter_(-1, scores.argmax(-1, keepdim=True), True)
