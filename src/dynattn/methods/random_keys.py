"""Random attention: each query keeps a share of its keys drawn by lot. A baseline: it looks at no score.

    kept(i, j) ⇔ word(i, j) among the max(floor, ⌈ratio · allowed keys of row i⌉) largest of row i

``word`` comes from the counter-based generator of :mod:`dynattn.maths.dropout`. It depends on the batch, the head, the
query's position on the key axis and the key alone, so it is the same for every block of queries, in the backward, and
on every device. A row keeps exactly as many pairs as with ``TopK(ratio=ratio, floor=floor)``, so that the two methods
differ in which pairs they keep, and in nothing else.

Source: random attention of Big Bird, arXiv:2007.14062, for single pairs.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from dynattn.maths import dropout
from dynattn.maths.selection import largest
from dynattn.methods import share
from dynattn.methods.base import Glance, PairMethod, Rows
from dynattn.methods.registry import register

_NAME = re.compile(rf"random-(?P<ratio>{share.NUMBER}){share.FLOOR}(?:-seed(?P<seed>\d+))?")


@final
@register
@dataclass(frozen=True)
class Random(PairMethod):
    """Keep a random share of every row's allowed keys, ⌈ratio · allowed⌉ of them, but at least ``floor``.

    Args:
        ratio: the share, a float above 0, at most 1 (which is dense attention).
        seed: the seed of the lot, at least 0 and below 2**63.
        floor: pairs kept at least in rows that have as many; 0 for no floor.

    Raises:
        TypeError: an argument is of a wrong type.
        ValueError: an argument is out of its range.

    Source: arXiv:2007.14062.
    """

    ratio: float
    seed: int = 0
    floor: int = share.DEFAULT_FLOOR

    def __post_init__(self) -> None:
        share.check("Random", self.ratio)
        share.check_floor("Random", self.floor)
        if not isinstance(self.seed, int) or isinstance(self.seed, bool):
            raise TypeError(f"Random: seed must be an int: got {self.seed!r}; pass a whole number")
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"Random: seed must be at least 0 and below 2**63: got {self.seed}")
        super().__post_init__()

    @property
    def name(self) -> str:
        """``random-0.5``, with ``-fFLOOR`` for another floor than 32 and ``-seedSEED`` for another seed than 0."""
        seed = f"-seed{self.seed}" if self.seed else ""
        return f"random-{share.text(self.ratio)}{share.floor_text(self.floor)}{seed}"

    @property
    def keeps_everything(self) -> bool:
        """True where the share is 1."""
        return self.ratio == 1

    @classmethod
    def from_name(cls, name: str) -> Random | None:
        """The method that ``name`` stands for, or None where it is not a random choice's name."""
        match = _NAME.fullmatch(name)
        if not match:
            return None
        floor = share.DEFAULT_FLOOR if match["floor"] is None else int(match["floor"])
        return cls(float(match["ratio"]), int(match["seed"] or 0), floor)

    @property
    def looks_at_positions(self) -> bool:
        """True: the lot is drawn by position, so that decoding with a cache keeps what one pass keeps."""
        return True

    def glance(self, head_dim: int, itemsize: int) -> Glance:
        """Nothing: the choice needs no score."""
        return Glance(0, 0)

    def choose(self, scores: Tensor, rows: Rows) -> Tensor:
        """By lot, of the allowed keys of each row."""
        batch, heads, length, kv_len = scores.shape
        streams = [[dropout.stream(self.seed, b, h) for h in range(heads)] for b in range(batch)]
        words = dropout.words(
            torch.tensor(streams, dtype=torch.int64, device=scores.device).view(batch, heads),
            torch.arange(length, device=scores.device) + rows.offset,
            torch.arange(kv_len, device=scores.device),
        )
        allowed = scores != -math.inf
        return largest(words.masked_fill(~allowed, -1), share.count(self.ratio, allowed.sum(-1), self.floor))
