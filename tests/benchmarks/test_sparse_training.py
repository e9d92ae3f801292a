"""benchmarks/sparse_training.py: what it asks for and records, and the tables that it writes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("accelerate")

from dynattn.lab.training.named import of_weights
from dynattn.lab.training.results import Study

RECORD = Path(__file__).parents[2] / "benchmarks" / "results" / "finetune" / "minilm-restore.json"
"""Some study: nothing is trained here."""


def test_a_set_is_trained_and_told(script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    found, page = script("sparse_training"), tmp_path / "page.md"
    marks = [f"{found.START.format(name)}\n{found.END.format(name)}\n" for name in found.SETS]
    page.write_text(f"before\n{''.join(marks)}after\n")
    asked: dict[str, Any] = {}

    def study(trained: Any, names: Any, seeds: Any, job: Any, folder: Path, stage: Any, swap: bool) -> Study:
        asked.update(names=names, seeds=seeds, jobs=[job(name, 0) for name in ("sdpa", *names)], swap=swap)
        stage("title", 3)()
        return Study.model_validate_json(RECORD.read_text())

    for name, value in (("RESULTS", tmp_path), ("PAGE", page), ("study", study), ("experiment", lambda: None)):
        monkeypatch.setattr(found, name, value)
    monkeypatch.setattr(torch, "set_num_threads", lambda threads: asked.update(threads=threads))
    found.main(["2-4", str(tmp_path), "3"])
    assert (asked["names"], asked["seeds"], asked["swap"]) == (found.SETS["2-4"], range(3), True)
    assert asked["threads"] == 1
    assert {job.steps for job in asked["jobs"]} == {96}
    assert json.loads((tmp_path / "training-2-4.json").read_text())["name"] == "minilm on restore"
    found.main(["table"])
    text = page.read_text()
    assert "64 steps of 4, 3 seeds." in text
    assert "| SDPA (dense) | – | – |" in text
    assert text.count("Not measured yet.") == len(found.SETS) - 1
    assert text.endswith("after\n")
    with pytest.raises(SystemExit, match="usage"):
        found.main(["3-5", "folder"])


def test_every_recipe_of_the_sets_is_one(script: Any):
    found = script("sparse_training")
    for name, recipes in found.SETS.items():
        for recipe in recipes:
            known = of_weights(recipe)
            assert known is not None
            assert known.name == recipe
            assert f"-{name}" in recipe
