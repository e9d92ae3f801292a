"""Numbers in short names: written so that reading them gives the same number, and no sign that names use."""

from __future__ import annotations

from decimal import Decimal

NUMBER = r"\d+(?:\.\d+)?"


def number(value: float) -> str:
    """As in ``0.00001``: all digits, no exponent, since a minus sign parts the pieces of a name."""
    return format(Decimal(repr(value)), "f")
