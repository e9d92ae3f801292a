"""benchmarks/essential.py on a tiny model: what it records, and the table that it writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers")
pytest.importorskip("pydantic")

from dynattn.lab.prune.settings import Settings


def test_points_are_recorded_once_and_shown(
    script: Any, tiny_decoder: Path, many_texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    found = script("essential")
    settings = Settings(model=str(tiny_decoder), items=6, tokens=64, text=many_texts)
    monkeypatch.setattr(found, "RESULTS", tmp_path)
    monkeypatch.setattr(found, "Settings", lambda model: settings)
    drawn = ["randomweight-0.9-r0", "randomweight-0.9-r1"]
    families = {"magnitude": ["magnitude-1.0", "magnitude-0.5"], "random search": drawn}
    monkeypatch.setattr(found, "FAMILIES", families)
    assert found.table() == "Not measured yet."
    found.measure("minilm")
    written = (tmp_path / "minilm.json").read_text()
    found.measure("minilm")
    assert (tmp_path / "minilm.json").read_text() == written
    table = found.table()
    assert "| magnitude | `magnitude-1.0` | 0% | 100.0%" in table
    assert "| magnitude | `magnitude-0.5` | 50% |" in table
    assert table.count("| random search |") == 1
    assert "Sparsest that retain 99% on validation: magnitude" in table
