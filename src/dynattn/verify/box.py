"""Boxes: a lower and an upper bound of every number of a tensor, which pass through a model in the place of a tensor.

    box = {x : lower <= x <= upper},    f(box) holds f(x) for every x in box

A :class:`Box` may be given to PyTorch's functions, and so to modules and models that are made of them. A function that
has a rule gives a box that holds all of its results; every other function raises.

Source: interval bound propagation, arXiv:1810.12715.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

Rule = Callable[..., Any]

_RULES: dict[str, Rule] = {}
_OF_ALL: set[str] = set()  # rules that look at the kind of a box themselves
# What moves numbers and changes none: done to both ends alike.
_MOVES = (
    "view", "reshape", "transpose", "movedim", "permute", "flatten", "unflatten", "unsqueeze", "squeeze", "expand",
    "contiguous", "repeat", "repeat_interleave", "select", "narrow", "to", "float", "double", "clone", "detach", "t",
)  # fmt: skip
_SEVERAL = ("chunk", "split", "unbind")


def rule(*names: str, of_all: bool = False) -> Callable[[Rule], Rule]:
    """Register a function as the rule of PyTorch's functions and methods of these names.

    Args:
        names: the names.
        of_all: the rule gives what it can to boxes that know more than their ends; else it is given the ends alone.
    """

    def register(found: Rule) -> Rule:
        _RULES.update(dict.fromkeys(names, found))
        if of_all:
            _OF_ALL.update(names)
        return found

    return register


class Box:
    """Every tensor between two tensors.

    Args:
        lower: the least that each number may be, float32 or float64.
        upper: the most, of the same shape, dtype and device.

    Raises:
        TypeError: an end is not a tensor of one of these dtypes.
        ValueError: shapes, dtypes or devices differ, an end is NaN, or ``lower`` exceeds ``upper`` somewhere.
    """

    def __init__(self, lower: Tensor, upper: Tensor) -> None:
        for name, end in (("lower", lower), ("upper", upper)):
            if not isinstance(end, Tensor) or end.dtype not in (torch.float32, torch.float64):
                got = end.dtype if isinstance(end, Tensor) else type(end).__name__
                raise TypeError(f"Box: {name} must be a tensor of float32 or float64: got {got}; convert it first")
        if lower.shape != upper.shape or lower.dtype != upper.dtype or lower.device != upper.device:
            kinds = [f"{tuple(end.shape)} {end.dtype} on {end.device}" for end in (lower, upper)]
            raise ValueError(
                f"Box: lower and upper must agree in shape, dtype and device: got {kinds[0]}, {kinds[1]}; convert one"
            )
        if not bool((lower <= upper).all()):
            raise ValueError(
                "Box: lower must not exceed upper, nor be NaN: got an entry where it does or is; swap the ends, or "
                "look for what overflowed"
            )
        self.lower, self.upper = lower, upper

    @classmethod
    def around(cls, center: Tensor, radius: float | Tensor) -> Box:
        """All tensors of which no number lies further than ``radius`` from that of ``center``.

        Args:
            center: float32 or float64.
            radius: at least 0: a number, or a tensor that broadcasts to the shape of ``center``.

        Raises:
            ValueError: a radius is negative or NaN.
        """
        return cls(center - radius, center + radius)

    @classmethod
    def of(cls, x: Tensor | Box) -> Box:
        """``x`` where it is a box, else the box that holds this one tensor."""
        return x if isinstance(x, Box) else cls(x, x)

    @classmethod
    def spanning(cls, *ends: Tensor) -> Box:
        """The least box that holds some tensors. Rules end with it: rounding may exchange two ends that are equal."""
        lower = upper = ends[0]
        for end in ends[1:]:
            lower, upper = torch.minimum(lower, end), torch.maximum(upper, end)
        return cls(lower, upper)

    @property
    def center(self) -> Tensor:
        """Half way between the ends."""
        return (self.lower + self.upper) / 2

    @property
    def radius(self) -> Tensor:
        """Half of the distance between the ends."""
        return (self.upper - self.lower) / 2

    def moved(self, function: Callable[[Tensor], Tensor]) -> Box:
        """The box after a function that moves numbers and changes none."""
        return Box(function(self.lower), function(self.upper))

    @classmethod
    def ruled(cls, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What a function or method with a rule gives for boxes of this kind."""
        return _RULES[name](*args, **kwargs)

    def holds(self, x: Tensor, slack: float = 0.0) -> bool:
        """Whether ``x`` lies inside, or outside by no more than ``slack``, as rounding may have it."""
        return bool(((self.lower - slack <= x) & (x <= self.upper + slack)).all())

    @property
    def shape(self) -> torch.Size:
        return self.lower.shape

    @property
    def dtype(self) -> torch.dtype:
        return self.lower.dtype

    @property
    def device(self) -> torch.device:
        return self.lower.device

    @property
    def ndim(self) -> int:
        return self.lower.ndim

    @property
    def requires_grad(self) -> bool:
        return self.lower.requires_grad or self.upper.requires_grad

    @property
    def mT(self) -> Box:
        return self.transpose(-1, -2)

    def size(self, *dim: int) -> Any:
        return self.lower.size(*dim)

    def dim(self) -> int:
        return self.lower.dim()

    def __len__(self) -> int:
        return len(self.lower)

    def __iter__(self) -> Iterator[Box]:
        return iter(self.unbind(0))

    def __getitem__(self, index: Any) -> Box:
        return self.moved(lambda end: end[index])

    def __repr__(self) -> str:
        widest = float(self.radius.detach().max()) if self.lower.numel() else 0.0
        return f"Box(shape={tuple(self.shape)}, {self.dtype}, radius at most {widest:.3g})"

    def __getattr__(self, name: str) -> Any:
        """The methods of tensors: those that move numbers, and those that have a rule."""
        if name in _MOVES or name in _SEVERAL or name in _RULES:
            return lambda *args, **kwargs: _apply(name, (self, *args), kwargs)
        raise AttributeError(f"Box: there is no rule for {name!r}; rules: {', '.join(sorted(_RULES))}")

    def __add__(self, other: Any) -> Box:
        return _apply("add", (self, other), {})

    __radd__ = __add__

    def __mul__(self, other: Any) -> Box:
        return _apply("mul", (self, other), {})

    __rmul__ = __mul__

    def __sub__(self, other: Any) -> Box:
        return _apply("sub", (self, other), {})

    def __rsub__(self, other: Any) -> Box:
        return -self + other

    def __neg__(self) -> Box:
        return Box(-self.upper, -self.lower)

    def __truediv__(self, other: Any) -> Box:
        return _apply("div", (self, other), {})

    def __matmul__(self, other: Any) -> Box:
        return _apply("matmul", (self, other), {})

    def __rmatmul__(self, other: Any) -> Box:
        return _apply("matmul", (other, self), {})

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return _apply(func.__name__, args, kwargs or {})


def _apply(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The rule of a function or method, or the move, with its arguments."""
    box = args[0] if args else None
    if name in _RULES:
        return (Box if name in _OF_ALL else _kind(args, kwargs)).ruled(name, args, kwargs)
    if name in _MOVES and isinstance(box, Box):
        return box.moved(lambda end: getattr(end, name)(*args[1:], **kwargs))
    if name in _SEVERAL and isinstance(box, Box):
        several = lambda end: getattr(end, name)(*args[1:], **kwargs)  # noqa: E731
        count = len(several(box.lower))
        return tuple(box.moved(lambda end, part=part: several(end)[part]) for part in range(count))
    raise NotImplementedError(
        f"verify: {name} must be a function that has a rule for boxes, and there is none for it; rules: "
        f"{', '.join(sorted(_RULES))}; dynattn.verify.rule({name!r}) registers one"
    )


def _kind(*given: Any) -> type[Box]:
    """The kind of box among arguments that knows the most."""
    found: type[Box] = Box
    for each in given:
        if isinstance(each, Box):
            kind = type(each)
        elif isinstance(each, (tuple, list)):
            kind = _kind(*each)
        else:
            kind = _kind(*each.values()) if isinstance(each, dict) else Box
        found = kind if issubclass(kind, found) else found
    return found
