"""Where files are kept that can be made again (fetched packages, converted models, compiled kernels), and how a file is
written whole."""

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


def work_file(target: Path) -> Path:
    """Where this process writes what is to become ``target``: beside it, on the same disk."""
    return target.with_name(f".{target.name}-{os.getpid()}")


def write_text_whole(target: Path, text: str) -> None:
    """Write a text file, and its folder where there is none; a kill or a full disk leaves the file before or this one.

    Args:
        target: the file.
        text: all of it, written as UTF-8.

    Raises:
        OSError: it cannot be written; the file before is untouched.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    work = work_file(target)
    try:
        with work.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        work.replace(target)
    finally:
        work.unlink(missing_ok=True)
