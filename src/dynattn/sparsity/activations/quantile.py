"""The k-th smallest of many numbers, exactly, without holding them: they are shown twice.

Sizes that are not negative are ordered as the bits of their float32 are. The first time their upper 16 bits are
counted, the second time the lower 16 bits of those among which the k-th is.
"""

from __future__ import annotations

import torch
from torch import Tensor

_HALF = 1 << 16


class Quantile:
    """Counts numbers, and gives the k-th smallest of them.

    Attributes:
        count: how many were shown the first time.
    """

    def __init__(self) -> None:
        self.upper = torch.zeros(_HALF, dtype=torch.int64, device="cpu")
        self.lower = torch.zeros_like(self.upper)
        self.rank, self.bin, self.count = 0, 0, 0

    def first(self, sizes: Tensor) -> None:
        """Show numbers, none of them negative, the first time."""
        bits = _bits(sizes)
        self.upper += torch.bincount(bits >> 16, minlength=_HALF)
        self.count += len(bits)

    def look_for(self, rank: int) -> None:
        """Say which is looked for, between the two times.

        Args:
            rank: from 1 for the smallest to :attr:`count`.
        """
        below = self.upper.cumsum(0)
        self.bin = int(torch.searchsorted(below, rank))
        self.rank = rank - int(below[self.bin] - self.upper[self.bin])

    def second(self, sizes: Tensor) -> None:
        """Show the same numbers again."""
        bits = _bits(sizes)
        self.lower += torch.bincount(bits[bits >> 16 == self.bin] & (_HALF - 1), minlength=_HALF)

    def value(self) -> float:
        """The number that was looked for."""
        last = int(torch.searchsorted(self.lower.cumsum(0), self.rank))
        bits = torch.tensor((self.bin << 16) + min(last, _HALF - 1), dtype=torch.int32, device="cpu")
        return float(bits.view(torch.float32))


def _bits(sizes: Tensor) -> Tensor:
    whole = sizes.detach().flatten().float().cpu()
    return whole.masked_fill(whole.isnan(), torch.inf).contiguous().view(torch.int32)
