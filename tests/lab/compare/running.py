"""The command and its options on a tiny model."""

from __future__ import annotations

import pytest

pytest.importorskip("transformers")
pytest.importorskip("pydantic")
pytest.importorskip("matplotlib")

import typer

from dynattn.cli.compare import compare

APP = typer.Typer()
APP.command()(compare)

METHODS = ["dense", "nm-1-2", "nm-2-4-w8-s1"]
OPTIONS = ["--items", "6", "--tokens", "64", "--seconds", "0.05", "--threads", "1", "--batch", "2"]


def silent(title: str, steps: int):
    return lambda: None
