"""Tensors of a box: its corners, where bounds are reached if anywhere, and what lies inside."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from dynattn.verify import Box


def members(boxes: Sequence[Box], count: int) -> Iterator[list[Tensor]]:
    """``count`` tensors of each box, every other time a corner; the first two are the ends."""
    generator = torch.Generator().manual_seed(0)
    yield [box.lower for box in boxes]
    yield [box.upper for box in boxes]
    for number in range(count):
        shares = [torch.rand(box.shape, generator=generator, dtype=box.dtype) for box in boxes]
        if number % 2:
            shares = [share.round() for share in shares]
        yield [box.lower + share * (box.upper - box.lower) for box, share in zip(boxes, shares, strict=True)]


def hold(function: Callable[..., Any], boxes: Sequence[Box], count: int = 100, slack: float = 1e-12) -> Box:
    """The function's box, which must hold what it gives for members of its arguments' boxes."""
    found = function(*boxes)
    for its in members(boxes, count):
        out = function(*its)
        assert found.holds(out, slack), (out - found.upper).max().maximum((found.lower - out).max())
    return found
