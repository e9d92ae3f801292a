"""Tells which checkpoint of a killed run can be trusted.

Trainer writes a checkpoint file by file into its final folder, so a kill leaves folders that look like checkpoints and
are not. A checkpoint counts once a seal has been put into it, last and atomically, that lists every file with its size.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from dynattn.lab.records import write_json

_SEAL = "complete.json"


def seal(checkpoint: Path) -> None:
    """Mark a checkpoint as complete. To be called when every process has written its part."""
    write_json(checkpoint / _SEAL, _sizes(checkpoint))


def step(checkpoint: Path) -> int:
    """After how many steps it was written."""
    return int(checkpoint.name.removeprefix("checkpoint-"))


def last_complete(folder: Path) -> Path | None:
    """The newest checkpoint in a run's folder that has its seal and every file in its full size."""
    found = (path for path in folder.glob("checkpoint-*") if _complete(path))
    return max(found, key=step, default=None)


def discard_incomplete(folder: Path) -> None:
    """Delete what a kill left half-written."""
    for path in folder.glob("checkpoint-*"):
        if not _complete(path):
            shutil.rmtree(path)


def discard(folder: Path) -> None:
    """Delete all checkpoints of a run that has ended."""
    for path in folder.glob("checkpoint-*"):
        shutil.rmtree(path)


def _complete(checkpoint: Path) -> bool:
    try:
        return json.loads((checkpoint / _SEAL).read_text(encoding="utf-8")) == _sizes(checkpoint)
    except (OSError, ValueError):
        return False


def _sizes(checkpoint: Path) -> dict[str, int]:
    files = (path for path in checkpoint.rglob("*") if path.is_file() and path.name != _SEAL)
    return {str(path.relative_to(checkpoint)): path.stat().st_size for path in files}
