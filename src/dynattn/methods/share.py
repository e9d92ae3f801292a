"""Shares of the keys, exact in integers, and as they stand in names."""

from __future__ import annotations

from fractions import Fraction
from typing import TypeVar

from torch import Tensor

NUMBER = r"\d+\.\d+"
"""A share in a name, as a regular expression: always with a point, so that ``topk-1`` is a count."""

_FINEST = 10**6

_Count = TypeVar("_Count", int, Tensor)


def check(method: str, ratio: float) -> None:
    """Refuse what is no share.

    Raises:
        TypeError: ``ratio`` is not a float.
        ValueError: it is not between 1e-6 and 1.
    """
    if not isinstance(ratio, float):
        raise TypeError(f"{method}: ratio must be a float: got {ratio!r}; write a share such as 0.25")
    if not 1 / _FINEST <= ratio <= 1:
        raise ValueError(f"{method}: ratio must be between 1e-6 and 1: got {ratio}; 0.25 keeps a quarter")


def text(ratio: float) -> str:
    """A number as it stands in a name: decimal, without exponent; ``float(text(ratio)) == ratio``.

    By hand, since the compiler, which passes methods by their names, cannot trace ``decimal``.
    """
    digits, _, exponent = repr(ratio).partition("e-")
    if not exponent:
        return digits
    return "0." + "0" * (int(exponent) - 1) + digits.replace(".", "")


def ceil(ratio: float, length: _Count) -> _Count:
    """``⌈ratio · length⌉``, where ``ratio`` means the nearest fraction with a denominator of at most a million.

    In floating point, three tenths of ten would be four.

    Args:
        ratio: the share.
        length: a whole number, or an int64 tensor of them, below 2**31.
    """
    fraction = exact(ratio)
    return -(-length * fraction.numerator // fraction.denominator)


def exact(ratio: float) -> Fraction:
    """The nearest fraction with a denominator of at most a million."""
    return Fraction(ratio).limit_denominator(_FINEST)
