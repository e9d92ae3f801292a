"""benchmarks/sparse_training.py on a tiny model: what it records, and the tables that it writes."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("accelerate")

from dynattn.lab.finetune.restore import Restore
from dynattn.lab.models import load
from dynattn.lab.tasks.texts import read
from dynattn.lab.training.named import of_weights


def test_a_set_is_trained_recorded_and_told(
    script: Any, tiny_encoder: Path, many_texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    found = script("sparse_training")
    page = tmp_path / "page.md"
    marks = [f"{found.START.format(name)}\n{found.END.format(name)}\n" for name in found.SETS]
    page.write_text(f"before\n{''.join(marks)}after\n")
    for name, value in (("RESULTS", tmp_path), ("PAGE", page)):
        monkeypatch.setattr(found, name, value)
    monkeypatch.setattr(found, "JOB", partial(found.JOB, steps=2, batch=2, evaluate_every=5, save_every=5))
    trained = Restore(load(str(tiny_encoder)), 4, 64, read(many_texts))
    found.measure(["sr-ste-2-4"], tmp_path / "runs", 1, tmp_path / "training-2-4.json", trained)
    found.main(["table"])
    text = page.read_text()
    assert "2 steps of 2, 1 seed." in text
    assert "| SDPA (dense) | – | – |" in text
    assert "| sr-ste-2-4 |" in text
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
