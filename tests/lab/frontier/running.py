"""The command, and sweeps of a tiny model."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from pathlib import Path

import pytest

pytest.importorskip("transformers")
pytest.importorskip("pydantic")
pytest.importorskip("plotly")

import typer

from dynattn.cli.frontier import frontier
from dynattn.lab.frontier import Settings, measure
from dynattn.lab.frontier.cell import Cell
from dynattn.lab.frontier.measure import Answer, Job

APP = typer.Typer()
APP.command()(frontier)


def silent(title: str, steps: int):
    return lambda: None


def here(job: Job, cells: Sequence[Cell]) -> Generator[Answer, None, None]:
    """In this process."""
    for cell in cells:
        yield measure.measure(job, cell)


def settings_for(model: Path, texts: Path, **fields: object) -> Settings:
    given = {"tasks": ("retrieval",), "tokens": (32, 64), "items": 6, "methods": ("nm-1-2", "nm-1-4"), "seconds": 0.01}
    return Settings(model=str(model), text=texts, **(given | fields))  # pyright: ignore[reportArgumentType]
