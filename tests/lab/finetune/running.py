"""The command and its options on a tiny model."""

from __future__ import annotations

import pytest

pytest.importorskip("accelerate")
pytest.importorskip("matplotlib")

import typer

APP = typer.Typer()

RETRIEVAL = ["--task", "retrieval"]
SIZES = ["--steps", "4", "--batch", "8", "--tokens", "64", "--threads", "1", "--learning-rate", "1e-3"]
