"""A fake clock, and functions that take the time they say."""

from __future__ import annotations

from collections.abc import Callable

import pytest


class Clock:
    """Time that passes only when a fake function is called."""

    def __init__(self) -> None:
        self.now = 0.0
        self.called: list[str] = []

    def __call__(self) -> float:
        return self.now

    def function(self, name: str, *durations: float) -> Callable[[], None]:
        """Takes each of ``durations`` in turn, then the last of them again and again."""
        remaining = list(durations)

        def call() -> None:
            self.called.append(name)
            self.now += remaining.pop(0) if len(remaining) > 1 else remaining[0]

        return call


@pytest.fixture
def clock() -> Clock:
    return Clock()
