"""Signals as a terminal's programs get them."""

from __future__ import annotations

import signal


def default_signals() -> None:
    """For ``preexec_fn``: a job in the background, or under nohup, starts its children with some signals ignored."""
    for each in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        signal.signal(each, signal.SIG_DFL)
