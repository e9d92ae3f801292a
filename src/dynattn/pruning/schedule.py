"""How many tokens, or heads, each layer sees.

    ratio_l = 1                                        l < front = ⌈share · layers⌉
    ratio_l = keep ^ ((l - front + 1) / (layers - front))    l >= front

The first layers see everything. From there on each layer drops the same share of the tokens that came to it, down to
``keep`` at the last one. With every layer more is known about which tokens are important, and a gradual schedule still
shortens most of the layers.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

FRONT = 0.15
"""Share of the layers, at the front, that see every token, in methods with a schedule."""


def schedule(keep: float, layers: int, share: float) -> tuple[float, ...]:
    """The keep ratio of each layer.

    Args:
        keep: the keep ratio of the last layer.
        layers: how many layers the model has.
        share: the share of the layers, at the front, that see everything; at least one layer does.
    """
    front = max(1, math.ceil(share * layers))
    if front >= layers:
        return (1.0,) * layers
    return tuple(1.0 if i < front else keep ** ((i - front + 1) / (layers - front)) for i in range(layers))


def counts(ratio: float, total: Tensor) -> Tensor:
    """``⌈ratio · n⌉`` for each sample; (batch,) int64 in and out.

    A billionth is taken off before rounding up, so that 0.07 · 100, which is 7.000000000000001, gives 7.
    """
    return torch.ceil(total.double() * ratio - 1e-9).long().clamp(min=1)


def check_ratio(function: str, field: str, value: float) -> None:
    """Raise unless ``value`` is a keep ratio."""
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise TypeError(f"{function}: {field} must be a number: got {value!r}; pass a ratio, as in 0.5")
    if not 0 < value <= 1:
        raise ValueError(f"{function}: {field} must be above 0 and at most 1: got {value}; pass a ratio, as in 0.5")
