"""How work tells of its progress."""

from __future__ import annotations

from collections.abc import Callable

Stage = Callable[[str, int], Callable[[], None]]
"""Told of a stage by its title and number of steps; returns what to call after each step."""
