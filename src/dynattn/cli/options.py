"""What several commands take."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

TrainedMethods = Annotated[
    str, typer.Option(help="Comma-separated, as in nm-1-2,nm-2-4; dense attention is always trained beside them.")
]
Seeds = Annotated[int, typer.Option(help="Runs of each method; 3 or more for intervals that hold for others.")]
LearningRate = Annotated[float | None, typer.Option(help="At its highest.")]
Threads = Annotated[int | None, typer.Option(help="Of PyTorch; default: as it is set.")]
Runs = Annotated[Path, typer.Option(help="Folder for the report, the JSON and the runs.")]


def listed(text: str) -> tuple[str, ...]:
    """The names of a comma-separated option."""
    return tuple(name.strip() for name in text.split(",") if name.strip())
