"""benchmarks/activations.py on a tiny model: what it records, and the tables that it writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers")
pytest.importorskip("pydantic")

from dynattn.lab.prune.settings import Settings
from dynattn.sparsity import NMActivations, Sparsity, parse


def test_a_method_at_one_projection_leaves_the_others_dense(script: Any):
    found = script("activations")
    plan = parse(found.at("nmact-1-2", "gate"))
    assert plan == Sparsity(mlp=NMActivations(1, 2), skip=("up", "down", "in", "out"))
    assert found.at("nmact-1-2", "all") == "nmact-1-2"
    with pytest.raises(ValueError, match="activations: method must be one that chooses inputs"):
        found.at("magnitude-0.5", "q")


def test_points_are_recorded_once_and_shown(
    script: Any, tiny_decoder: Path, many_texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    found = script("activations")
    settings = Settings(model=str(tiny_decoder), items=2, tokens=64, text=many_texts)
    monkeypatch.setattr(found, "RESULTS", tmp_path)
    monkeypatch.setattr(found, "SETTINGS", {"smollm2": settings})
    families = {"N:M": ["nmact-2-2"], "N:M, by norm": [], "WINA": ["wina-0.5"]}
    monkeypatch.setattr(found, "FAMILIES", families)
    assert found.table() == "Not measured yet."
    found.measure("smollm2")
    written = (tmp_path / "smollm2.json").read_text()
    found.measure("smollm2")
    assert (tmp_path / "smollm2.json").read_text() == written
    table = found.table()
    assert "| WINA | `wina-0.5` | 50.0% |" in table
    assert "|  | q | k | v | o | gate | up | down | all |" in table
    assert "| `nmact-2-2` | +0.000 | +0.000 |" in table
    assert "–" not in table.split("In one projection")[1]
