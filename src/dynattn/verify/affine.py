"""Boxes that remember what their numbers owe to what moves: between two affine functions of it.

    below · ε + below₀  ≤  x  ≤  above · ε + above₀    for every ε in [-1, 1]^symbols that gives x

A symbol ε stands for one number that moves, in units of its radius. Two numbers that rise with the same symbol are
known to rise together, which a :class:`~dynattn.verify.Box` forgets: its difference of a number and itself is not 0. A
function without a rule for such boxes takes their ends alone, so that what holds for boxes holds here.

Source: linear bounds carried forward, arXiv:2002.06622.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dynattn.verify.box import Box, Rule

_RULES: dict[str, Rule] = {}


def affine_rule(*names: str) -> Callable[[Rule], Rule]:
    """Register a function as the rule of PyTorch's functions and methods of these names for affine bounds.

    It gives an :class:`Affine`, of which at least one argument is one. What the function's rule for boxes gives is
    intersected with it.
    """

    def register(found: Rule) -> Rule:
        _RULES.update(dict.fromkeys(names, found))
        return found

    return register


class Form(NamedTuple):
    """An affine function of the symbols for each number of a tensor.

    Attributes:
        slopes: (symbols, *shape).
        at: (*shape), where no symbol moves.
        of: tells symbols apart: those of two calls of :meth:`Affine.around` have nothing to do with each other.
    """

    slopes: Tensor
    at: Tensor
    of: object

    def moved(self, function: Callable[[Tensor], Tensor]) -> Form:
        """The form of a linear map of the numbers."""
        return self._replace(slopes=torch.vmap(function)(self.slopes), at=function(self.at))

    def plus(self, other: Form, share: float = 1.0) -> Form:
        """The sum with a share of another form of the same symbols; shapes may broadcast."""
        slopes = torch.vmap(torch.add)(self.slopes, share * other.slopes)
        return self._replace(slopes=slopes, at=self.at + share * other.at)

    def times(self, share: float) -> Form:
        """A share of it."""
        return self._replace(slopes=share * self.slopes, at=share * self.at)

    def shifted(self, by: Tensor) -> Form:
        """With a constant added, of a shape that does not broadcast this one's."""
        return self._replace(at=self.at + by)

    def filled(self, mask: Tensor, value: Tensor | float) -> Form:
        """Constant where ``mask`` is."""
        value = torch.as_tensor(value, dtype=self.at.dtype, device=self.at.device)
        return self._replace(
            slopes=torch.vmap(lambda slopes: slopes.masked_fill(mask, 0.0))(self.slopes),
            at=torch.where(mask, value, self.at),
        )

    @property
    def swing(self) -> Tensor:
        """How far the symbols can move each number at most."""
        return self.slopes.abs().sum(0)


class Affine(Box):
    """Every tensor between two affine functions of what moves.

    Its ends are those of the functions, or those of a box that is known to hold it too, whichever is tighter.

    Args:
        below: never above the number.
        above: never below it.
        box: also holds all numbers; None where nothing else is known.
    """

    def __init__(self, below: Form, above: Form, box: Box | None = None) -> None:
        lower, upper = below.at - below.swing, above.at + above.swing
        if box is not None:
            lower, upper = torch.maximum(lower, box.lower), torch.minimum(upper, box.upper)
        ends = Box.spanning(lower, upper)  # where the ends are equal, rounding may have exchanged them
        super().__init__(ends.lower, ends.upper)
        self.below, self.above = below, above

    @classmethod
    def around(cls, center: Tensor, radius: float | Tensor) -> Affine:
        """As :meth:`Box.around`, with a symbol for each number that moves.

        Args:
            center: float32 or float64.
            radius: at least 0: a number, or a tensor that broadcasts to the shape of ``center``.

        Raises:
            ValueError: a radius is negative or NaN.
        """
        box = Box.around(center, radius)
        size = torch.as_tensor(radius, dtype=center.dtype, device=center.device).expand(center.shape).flatten()
        moves = size.nonzero().flatten()
        slopes = center.new_zeros(max(1, len(moves)), center.numel())  # at least a symbol, since vmap needs one
        slopes[torch.arange(len(moves), device=center.device), moves] = size[moves]
        form = Form(slopes.view(-1, *center.shape), center, object())
        return cls(form, form, box)

    @classmethod
    def constant(cls, box: Box, like: Affine) -> Affine:
        """A box as one with the symbols of another, to which it owes nothing unless it has them."""
        of = like.below.of
        if isinstance(box, Affine) and box.below.of is of:
            return box
        none = like.below.slopes.new_zeros(len(like.below.slopes), *box.shape)
        return cls(Form(none, box.lower, of), Form(none, box.upper, of), box)

    def meet(self, box: Box) -> Affine:
        """Within a box as well."""
        ends = torch.maximum(self.lower, box.lower), torch.minimum(self.upper, box.upper)
        return Affine(self.below, self.above, Box.spanning(*ends))

    def where(self, mask: Tensor, box: Box) -> Affine:
        """As it is where ``mask`` is, and elsewhere what a box holds, which owes nothing to the symbols.

        Args:
            mask: bool, of this shape or one that broadcasts to it.
            box: of this shape.
        """
        below, above = self.below.filled(~mask, box.lower), self.above.filled(~mask, box.upper)
        ends = (torch.where(mask, own, its) for own, its in ((self.lower, box.lower), (self.upper, box.upper)))
        return Affine(below, above, Box(*ends))

    def moved(self, function: Callable[[Tensor], Tensor]) -> Affine:
        return Affine(self.below.moved(function), self.above.moved(function), super().moved(function))

    def __neg__(self) -> Affine:
        return Affine(self.above.times(-1), self.below.times(-1), -self.plain)

    @property
    def plain(self) -> Box:
        """The ends alone."""
        return Box(self.lower, self.upper)

    @classmethod
    def ruled(cls, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        ends = Box.ruled(name, _plain(args), _plain(kwargs))
        return _RULES[name](*args, **kwargs).meet(ends) if name in _RULES else ends


def _plain(given: Any) -> Any:
    """Arguments with the ends of affine boxes in their place."""
    if isinstance(given, Affine):
        return given.plain
    if isinstance(given, (tuple, list)):
        return type(given)(map(_plain, given))
    return {name: _plain(value) for name, value in given.items()} if isinstance(given, dict) else given
