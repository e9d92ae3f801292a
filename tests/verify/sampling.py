"""Tensors of a box: its corners, where bounds are reached if anywhere, and what lies inside."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from dynattn.verify import Affine, Box
from dynattn.verify.affine import Form


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


def follow(function: Callable[[Any], Any], start: Affine, count: int = 60, slack: float = 1e-10) -> Affine:
    """The function's affine box, between whose two functions of the symbols it must lie at every choice of them.

    The ends alone would not do: they are intersected with those of intervals, which may hide a function that is wrong.
    """
    found = function(start)
    ends, numbers = Box(start.lower, start.upper), start.below
    generator = torch.Generator().manual_seed(0)
    for number in range(count):
        symbols = 2 * torch.rand(len(numbers.slopes), generator=generator, dtype=start.dtype) - 1
        symbols = symbols.sign() if number % 2 else symbols
        out = function(_at(numbers, symbols))
        assert found.holds(out, slack)
        assert bool((_at(found.below, symbols) <= out + slack).all()), (_at(found.below, symbols) - out).max()
        assert bool((out <= _at(found.above, symbols) + slack).all()), (out - _at(found.above, symbols)).max()
    plain = function(ends)
    assert not isinstance(plain, Affine)
    assert bool((found.lower >= plain.lower - slack).all()), "looser than intervals"
    assert bool((found.upper <= plain.upper + slack).all()), "looser than intervals"
    return found


def _at(form: Form, symbols: Tensor) -> Tensor:
    return form.at + torch.tensordot(symbols, form.slopes, 1)
