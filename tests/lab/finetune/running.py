"""The command and its options on a tiny model."""

from __future__ import annotations

import pytest

pytest.importorskip("accelerate")
pytest.importorskip("matplotlib")

import typer

from dynattn.cli.finetune import finetune

APP = typer.Typer()
APP.command()(finetune)

RETRIEVAL = ["--task", "retrieval"]
SIZES = ["--steps", "4", "--batch", "8", "--tokens", "64", "--threads", "1", "--learning-rate", "1e-3"]
