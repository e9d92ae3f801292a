"""Checks that the settings of all trainings share."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from dynattn.methods import parse


def check(command: str, settings: Any, numbers: tuple[str, ...], known: Callable[[str], object] = parse) -> None:
    """Refuse numbers below 1, a learning rate that is none, and methods that there are not.

    Args:
        command: named in errors.
        settings: an object with ``methods``, short names, and ``learning_rate``, which is None for the default.
        numbers: fields that are None or at least 1.
        known: reads a short name, and raises ValueError where there is no such thing.

    Raises:
        ValueError: one of them is wrong.
    """
    for field in numbers:
        value = getattr(settings, field)
        if value is not None and value < 1:
            raise ValueError(f"{command}: {field} must be at least 1: got {value}; leave it out for the default")
    rate = settings.learning_rate
    if rate is not None and not (math.isfinite(rate) and rate > 0):
        raise ValueError(f"{command}: learning_rate must be positive: got {rate}; leave it out for the default")
    for name in settings.methods:
        known(name)
