"""The minutes that a run may take."""

from __future__ import annotations

import time
from collections.abc import Callable


class Clock:
    """Tells what is left.

    Args:
        seconds: that may be spent from now on.
        now: gives the time in seconds.
    """

    def __init__(self, seconds: float, now: Callable[[], float] = time.monotonic) -> None:
        self._now, self._began, self._seconds = now, now(), seconds

    @property
    def spent(self) -> float:
        """Seconds since it began."""
        return self._now() - self._began

    @property
    def left(self) -> float:
        """Seconds; negative where the time is over."""
        return self._seconds - self.spent
