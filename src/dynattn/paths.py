"""Where files are kept that can be made again: fetched packages, converted models, compiled kernels."""

from __future__ import annotations

import os
from pathlib import Path


def cache_home() -> Path:
    """``$DYNATTN_CACHE``, else ``dynattn`` under ``$XDG_CACHE_HOME`` or ``~/.cache``.

    Returns:
        The folder; it may not exist yet. Deleting it is safe.
    """
    if explicit := os.environ.get("DYNATTN_CACHE"):
        return Path(explicit).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "dynattn"
