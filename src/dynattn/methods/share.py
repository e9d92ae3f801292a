"""Shares of the keys: counted exactly, in integers, and written in the names of methods."""

from __future__ import annotations

from fractions import Fraction
from functools import cache
from typing import TypeVar

from torch import Tensor

NUMBER = r"\d+\.\d+"
"""A share in a name, as a regular expression: always with a point, so that ``topk-1`` is a count."""

FLOOR = r"(?:-f(?P<floor>\d+))?"
"""The end of a name where the floor is not the default, as a regular expression."""

DEFAULT_FLOOR = 32
"""A share keeps at least so many keys, since a quarter of the few keys of an early causal row is next to nothing."""

_FINEST = 10**6

_Count = TypeVar("_Count", int, Tensor)


def check(method: str, ratio: float, field: str = "ratio") -> None:
    """Refuse a number that is not a share.

    Raises:
        TypeError: ``ratio`` is not a float.
        ValueError: it is not between 1e-6 and 1.
    """
    if not isinstance(ratio, float):
        raise TypeError(f"{method}: {field} must be a float: got {ratio!r}; write a share such as 0.25")
    if not 1 / _FINEST <= ratio <= 1:
        raise ValueError(f"{method}: {field} must be between 1e-6 and 1: got {ratio}; 0.25 keeps a quarter")


def check_floor(method: str, floor: int) -> None:
    """Refuse a number that is not a floor of a share.

    Raises:
        TypeError: ``floor`` is not an int.
        ValueError: it is not between 0 and 2**31 - 1.
    """
    if not isinstance(floor, int) or isinstance(floor, bool):
        raise TypeError(f"{method}: floor must be an int: got {floor!r}; it counts keys, as 32 does")
    if not 0 <= floor < 2**31:
        raise ValueError(f"{method}: floor must be between 0 and 2**31 - 1: got {floor}; 0 sets none")


def text(ratio: float) -> str:
    """A number as it stands in a name: decimal, without exponent; ``float(text(ratio)) == ratio``.

    It is written by hand, since ``torch.compile`` traces the names of methods and cannot trace ``decimal``.
    """
    digits, _, exponent = repr(ratio).partition("e-")
    if not exponent:
        return digits
    return "0." + "0" * (int(exponent) - 1) + digits.replace(".", "")


def floor_text(floor: int) -> str:
    """``-f8``; nothing for the default."""
    return f"-f{floor}" if floor != DEFAULT_FLOOR else ""


def count(ratio: float, allowed: Tensor, floor: int) -> Tensor:
    """Keys that a row keeps of those it may attend: the share, at least ``floor``, and no more than there are.

    Args:
        ratio: the share.
        allowed: keys that each row may attend, int64.
        floor: the least count.
    """
    return ceil(ratio, allowed).clamp(min=floor).minimum(allowed)


def ceil(ratio: float, length: _Count) -> _Count:
    """``⌈ratio · length⌉``, where ``ratio`` means the nearest fraction with a denominator of at most a million.

    It is computed in integers, since in floating point ``ceil(0.07 * 100)`` is 8.

    Args:
        ratio: the share.
        length: a whole number, or an int64 tensor of them, below 2**31.
    """
    fraction = exact(ratio)
    return -(-length * fraction.numerator // fraction.denominator)


@cache
def exact(ratio: float) -> Fraction:
    """The nearest fraction with a denominator of at most a million."""
    return Fraction(ratio).limit_denominator(_FINEST)
