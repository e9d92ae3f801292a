"""Checks of the numbers of tokens that caches are made with."""

from __future__ import annotations


def check_counts(owner: str, least: int = 1, **given: int) -> None:
    """Raise unless every argument is a whole number of at least ``least``.

    Args:
        owner: whose arguments they are.
        least: the smallest number that will do.
        given: the arguments by name.

    Raises:
        TypeError: one is no int.
        ValueError: one is too small.
    """
    for name, value in given.items():
        if not isinstance(value, int) or isinstance(value, bool):
            raise TypeError(f"{owner}: {name} must be an int: got {value!r}; pass a number of tokens")
        if value < least:
            raise ValueError(f"{owner}: {name} must be at least {least}: got {value}; pass a larger number")


def check_odd(owner: str, **given: int) -> None:
    """Raise unless every argument is odd, so that a pool has a middle.

    Args:
        owner: whose arguments they are.
        given: the arguments by name.

    Raises:
        ValueError: one is even.
    """
    for name, value in given.items():
        if value % 2 == 0:
            raise ValueError(f"{owner}: {name} must be odd, to have a middle: got {value}; pass {value + 1}")
