"""``dynattn lra`` from the command line, on a task small enough for a test."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("accelerate")

from typer.testing import CliRunner

from dynattn.cli import app
from dynattn.lab.lra import recipes
from dynattn.lab.lra.data import Data, Split
from dynattn.lab.lra.recipes import Recipe
from dynattn.lab.tasks import DataMissingError


def even() -> Data:
    part = Split([np.full(8, 1 + index % 2, np.uint16) for index in range(32)], np.arange(32) % 2)
    return Data(part, part, vocabulary=3, classes=2, length=8, ragged=False, source="eight ones or eight twos")


def set_recipe(monkeypatch, data) -> None:
    small = Recipe(
        data, width=8, layers=1, heads=2, mlp=8, pool="cls", dropout=0.1, steps=3, batch=8, learning_rate=1e-2
    )
    monkeypatch.setitem(recipes._RECIPES, ("image", "small"), small)


def lra(*arguments: str):
    return CliRunner().invoke(app, ["lra", *arguments])


def test_the_command_trains_and_reports(tmp_path, monkeypatch):
    set_recipe(monkeypatch, even)
    monkeypatch.chdir(tmp_path)
    result = lra("--task", "image", "--methods", "nm-2-4, nm-1-2-x2", "--seeds", "2", "--steps", "2")
    assert result.exit_code == 0, result.output
    found = json.loads(Path("reports/lra-image-small.json").read_text())
    assert [arm["method"] for arm in found["arms"]] == ["sdpa", "nm-2-4", "nm-1-2-x2"]
    assert found["job"]["steps"] == 2
    assert found["seeds"] == [0, 1]
    page = Path("reports/lra-image-small.html").read_text()
    assert "eight ones or eight twos" in page
    assert "commonest class 50.0%" in page
    assert "lra-image-small.html" in result.output
    assert (tmp_path / "reports" / "lra-image-small" / "nm-2-4-seed1" / "model" / "model.safetensors").exists()


@pytest.mark.parametrize(
    "wrong", [("--task", "pathfinder"), ("--size", "huge"), ("--methods", "nm-9"), ("--seeds", "0")]
)
def test_wrong_options_end_with_the_reason(tmp_path, wrong):
    result = lra(*wrong, "--output", str(tmp_path))
    assert result.exit_code == 2
    assert wrong[1] in result.output


def test_missing_data_ends_with_the_remedy(tmp_path, monkeypatch):
    def missing():
        raise DataMissingError("load: the data must be there: run: fetch it")

    set_recipe(monkeypatch, missing)
    result = lra("--task", "image", "--output", str(tmp_path))
    assert result.exit_code == 2
    assert "run: fetch it" in result.output
