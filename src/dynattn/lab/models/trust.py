"""Whether code that a model's folder or repository brings along may be run: only where a person says so."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

TRUST = "DYNATTN_TRUST_REMOTE_CODE"
"""Set to 1 while it may. In the environment, so that processes that load the model once more inherit it."""


def trusted() -> bool:
    """Whether such code may be run."""
    return os.environ.get(TRUST) == "1"


@contextmanager
def trusting(given: bool) -> Iterator[None]:
    """Let such code be run meanwhile, where it is ``given``; else refuse it, whatever the environment holds."""
    before = os.environ.pop(TRUST, None)
    if given:
        os.environ[TRUST] = "1"
    try:
        yield
    finally:
        os.environ.pop(TRUST, None)
        if before is not None:
            os.environ[TRUST] = before
