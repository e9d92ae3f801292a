"""How many tokens, or heads, each layer sees.

    ratio_l = 1                                        l < front = ⌈share · layers⌉
    ratio_l = keep ^ ((l - front + 1) / (layers - front))    l >= front

The first layers see everything; from there each layer drops the same share of what came to it, down to ``keep`` at the
last one. Importance is known better with every layer, and later layers still do most of the shortening's work.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

FRONT = 0.15
"""Share of the layers, at the front, that see every token, in methods with a schedule."""


def schedule(keep: float, layers: int, share: float) -> tuple[float, ...]:
    """Keep ratio of each layer.

    Args:
        keep: of the last layer.
        layers: of the model.
        share: of the layers, at the front, that see everything; at least one does.
    """
    front = max(1, math.ceil(share * layers))
    if front >= layers:
        return (1.0,) * layers
    return tuple(1.0 if i < front else keep ** ((i - front + 1) / (layers - front)) for i in range(layers))


def counts(ratio: float, total: Tensor) -> Tensor:
    """``⌈ratio · n⌉`` for each sample; (batch,) int64 in and out.

    Rounded up after a billionth is taken off, so that 0.1 · 10 is 1 in floating point too.
    """
    return torch.ceil(total.double() * ratio - 1e-9).long().clamp(min=1)


def check_ratio(function: str, field: str, value: float) -> None:
    """Raise unless ``value`` is a keep ratio."""
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise TypeError(f"{function}: {field} must be a number: got {value!r}; pass a ratio, as in 0.5")
    if not 0 < value <= 1:
        raise ValueError(f"{function}: {field} must be above 0 and at most 1: got {value}; pass a ratio, as in 0.5")
