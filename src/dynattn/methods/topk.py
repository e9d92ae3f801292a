"""Top-k attention: each query keeps the k keys with the largest scores, of all that it may attend.

    kept(i, j) ⇔ s_ij among the k largest of row i,    k given, or k_i = max(floor, ⌈ratio · allowed keys of row i⌉)

Source: hard attention of AxFormer, arXiv:2010.03688; of any choice of k pairs a row this one keeps the most mass.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from dynattn.maths.selection import largest
from dynattn.methods import share
from dynattn.methods.base import Choice, PairMethod, RowRule, Rows
from dynattn.methods.registry import register

_NAME = re.compile(rf"topk-(?:(?P<k>\d+)|(?P<ratio>{share.NUMBER}){share.FLOOR})")


@final
@register
@dataclass(frozen=True)
class TopK(PairMethod):
    """Keep the k largest scores of every row, or a share of the row's allowed keys.

    Ties go to the lower key index. A row with fewer than k allowed keys keeps them all. With ``ratio``, a row with
    ``a`` allowed keys keeps ⌈ratio · a⌉ of them, so that padded texts keep the same share; but it keeps at least
    ``floor``, since a share of the few keys that an early causal row has is next to nothing.

    Args:
        k: pairs kept in each row, at least 1. Give this or ``ratio``.
        ratio: share of the row's allowed keys, a float above 0, at most 1 (which is dense attention).
        floor: with ``ratio``, how many pairs are kept at least, in rows that have as many; 0 for no floor.

    Raises:
        TypeError: not exactly one of ``k`` and ``ratio`` is given, or an argument is of a wrong type.
        ValueError: an argument is out of its range, or there is a floor beside ``k``.

    Source: arXiv:2010.03688. The share of the allowed keys and its floor are this library's addition.
    """

    k: int | None = None
    ratio: float | None = None
    floor: int = share.DEFAULT_FLOOR

    def __post_init__(self) -> None:
        if (self.k is None) == (self.ratio is None):
            raise TypeError(f"TopK: give one of k and ratio: got k={self.k}, ratio={self.ratio}; try TopK(ratio=0.25)")
        share.check_floor("TopK", self.floor)
        if self.ratio is not None:
            share.check("TopK", self.ratio)
        elif self.floor != share.DEFAULT_FLOOR:
            raise ValueError(f"TopK: floor must be left out beside k: got {self.floor}; k is the same for every row")
        elif not isinstance(self.k, int) or isinstance(self.k, bool):
            raise TypeError(f"TopK: k must be an int: got {self.k!r}; try TopK(k=64), or TopK(ratio=0.25) for a share")
        elif not 1 <= self.k < 2**31:
            raise ValueError(f"TopK: k must be between 1 and 2**31 - 1: got {self.k}; try TopK(k=64)")
        super().__post_init__()

    @property
    def name(self) -> str:
        """``topk-64`` or ``topk-0.25``, with ``-fFLOOR`` for another floor than 32; ``topk-1`` is one key, ``topk-1.0``
        all."""
        if self.ratio is None:
            return f"topk-{self.k}"
        return f"topk-{share.text(self.ratio)}{share.floor_text(self.floor)}"

    @property
    def keeps_everything(self) -> bool:
        """True where the share is 1."""
        return self.ratio == 1

    def keeps_all(self, q_len: int, kv_len: int) -> bool:
        """True where no row has more keys than it keeps in any case."""
        return self.keeps_everything or kv_len <= (self.floor if self.k is None else self.k)

    @classmethod
    def from_name(cls, name: str) -> TopK | None:
        """The method that ``name`` stands for, or None where it is not a top-k name."""
        match = _NAME.fullmatch(name)
        if not match:
            return None
        if match["k"]:
            return cls(k=int(match["k"]))
        floor = share.DEFAULT_FLOOR if match["floor"] is None else int(match["floor"])
        return cls(ratio=float(match["ratio"]), floor=floor)

    @property
    def choice(self) -> Choice:
        """Each row by its own scores."""
        return Choice.ROWS

    def row_rule(self) -> RowRule:
        """At most k keys, or a share of the allowed ones, and a floor."""
        if self.ratio is None:
            return RowRule(most=self.k or 1)
        numerator, denominator = share.exact(self.ratio).as_integer_ratio()
        return RowRule(floor=self.floor, numerator=numerator, denominator=denominator)

    def choose(self, scores: Tensor, rows: Rows) -> Tensor:
        """The k largest of each row."""
        return largest(scores, self.count((scores != -math.inf).sum(-1)))

    def count(self, allowed: Tensor) -> Tensor:
        """Pairs that a row keeps, given how many it may attend."""
        if self.ratio is not None:
            return share.count(self.ratio, allowed, self.floor)
        return torch.full_like(allowed, self.k or 0).minimum(allowed)
