"""Attention by mass (top-p): each query keeps the fewest keys that hold an asked share of the dense weights.

    kept(i, j) ⇔ Σ_{j' before j} softmax(s_i)_j' < mass,    keys in order of falling score

The number kept follows the row, and what is lost is known before anything is measured: ``kept mass >= mass`` in every
row, apart from rounding. No choice of fewer pairs a row keeps as much.

Source: nucleus sampling, arXiv:1904.09751, with keys in place of words; of attention, Twilight, arXiv:2502.02770.
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

_NAME = re.compile(rf"mass-(?P<mass>{share.NUMBER})")


@final
@register
@dataclass(frozen=True)
class Mass(PairMethod):
    """Keep the largest weights of every row until their sum reaches a share of the whole.

    Ties go to the lower key index. The key that reaches the share is kept, so that at least one is. A row with a NaN
    keeps the first one alone, and a row with scores of +inf the first of those, so that it reaches the output.

    Args:
        mass: the share, a float between 1e-6 and 1 (which is dense attention).

    Raises:
        TypeError: ``mass`` is not a float.
        ValueError: it is out of its range.

    Source: see this file.
    """

    mass: float

    def __post_init__(self) -> None:
        share.check("Mass", self.mass, "mass")
        super().__post_init__()

    @property
    def name(self) -> str:
        """``mass-0.95``."""
        return f"mass-{share.text(self.mass)}"

    @property
    def keeps_everything(self) -> bool:
        """True where the share is 1."""
        return self.mass == 1

    @classmethod
    def from_name(cls, name: str) -> Mass | None:
        """The method that ``name`` stands for, or None where it is not a name of this method."""
        match = _NAME.fullmatch(name)
        return cls(float(match["mass"])) if match else None

    @property
    def choice(self) -> Choice:
        """Each row by its own scores."""
        return Choice.ROWS

    def row_rule(self) -> RowRule:
        """By mass; everything where the share is 1."""
        return RowRule() if self.keeps_everything else RowRule(mass=self.mass)

    def choose(self, scores: Tensor, rows: Rows) -> Tensor:
        """The largest weights of each row, until the share is reached."""
        if self.keeps_everything or scores.shape[-1] == 0:
            return scores != -math.inf
        ranked = scores.sort(dim=-1, descending=True, stable=True).indices
        held = (scores - scores.amax(-1, keepdim=True)).exp().gather(-1, ranked).cumsum(-1)
        kept = torch.ones_like(held, dtype=torch.bool)  # the first of each row is
        kept[..., 1:] = held[..., :-1] < self.mass * held[..., -1:]  # False where there is NaN or +inf, or nothing
        return torch.zeros_like(kept).scatter_(-1, ranked, kept)
