"""The type of the function by which work reports its progress."""

from __future__ import annotations

from collections.abc import Callable

Stage = Callable[[str, int], Callable[[], None]]
"""Called with the title of a stage and its number of steps; returns a function to call after each step."""
