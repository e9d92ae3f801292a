"""Files that a kill leaves whole."""

from __future__ import annotations

import os
from pathlib import Path

from pydantic import BaseModel


def write_whole(path: Path, text: str) -> None:
    """Write a text file, and its folder where there is none; a kill leaves the file before or this one, whole.

    Args:
        path: of the file.
        text: all of it, written as UTF-8.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    work = path.with_name(f".{path.name}-{os.getpid()}")
    with work.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    work.replace(path)


def write_record(record: BaseModel, path: Path) -> None:
    """Write a record as JSON; a kill leaves the one before or this one, whole."""
    write_whole(path, record.model_dump_json(indent=1) + "\n")
