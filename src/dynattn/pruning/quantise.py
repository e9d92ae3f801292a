"""Quantisation to a few bits, of which the high ones can be read by themselves.

    Δ = max|x| / (2^(b-1) - 1)      whole = Δ · round(x / Δ)      high = Δ · 2^low · ⌊round(x / Δ) / 2^low⌋

Linear and symmetric, b = high + low bits in two's complement, one Δ a sample and head. The high bits are an arithmetic
shift, as hardware that stores both parts apart reads them.

Source: arXiv:2012.09852, section on progressive quantisation.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

_MOST_BITS = 24  # float32 holds no more


class SplitBits(NamedTuple):
    """A tensor as all of its bits give it, and as its high bits alone give it, in its own dtype."""

    whole: Tensor
    high: Tensor


def split(x: Tensor, alive: Tensor, high: int, low: int) -> SplitBits:
    """Quantise.

    Args:
        x: (batch, heads, length, head_dim).
        alive: (batch, length) bool: the tokens that decide Δ.
        high: how many bits are read first.
        low: how many bits are read only where they are needed.
    """
    largest = x.abs().masked_fill(~alive[:, None, :, None], 0).amax((2, 3), keepdim=True)  # [batch, heads, 1, 1]
    most = 2 ** (high + low - 1) - 1
    step = torch.where(largest > 0, largest / most, 1)
    whole = (x / step).round().clamp(-most, most)
    return SplitBits(step * whole, step * 2**low * (whole / 2**low).floor())


def check_bits(function: str, bits: tuple[int, int]) -> None:
    """Raise unless ``bits`` is a pair of high bits, at least 2, and low bits, at least 0, 24 together at most."""
    pair = isinstance(bits, tuple) and len(bits) == 2 and all(type(b) is int for b in bits)
    if not pair or bits[0] < 2 or bits[1] < 0 or sum(bits) > _MOST_BITS:
        raise ValueError(
            f"{function}: bits must be a pair (high, low) with high >= 2, low >= 0 and at most {_MOST_BITS} together: "
            f"got {bits!r}; (8, 4) is usual"
        )
