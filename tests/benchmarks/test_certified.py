"""benchmarks/certified.py with a few steps: what it records, that bounds and attack agree, and the table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("sklearn")
pytest.importorskip("pydantic")


def test_cases_are_recorded_once_and_shown(script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    found = script("certified")
    monkeypatch.setattr(found, "RECORD", tmp_path / "certified.json")
    monkeypatch.setattr(found, "RADII", (0.001, 0.05))
    monkeypatch.setattr(found, "ATTACK", 2)
    monkeypatch.setattr(found, "machine", lambda: {"processor": "a", "threads": 1, "torch": "1"})
    monkeypatch.setattr(found, "describe", lambda machine: "a machine")
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)
    assert found.table() == "Not recorded yet."
    every = [found.Case("nm-1-2", training, 0) for training in found.TRAININGS]
    found.record(every[:1], 30, 2)
    first = json.loads(found.RECORD.read_text())["cases"]
    found.record(every, 30, 2)
    rows = json.loads(found.RECORD.read_text())["cases"]
    assert rows[:1] == first
    assert len(rows) == 2
    for row in rows:
        for low, middle, high in zip(row["intervals"], row["linear"], row["attack"], strict=True):
            assert low <= middle <= high
    assert "| `nm-1-2` | certified | " in found.table()
    page = f"{found.START}\n\nold\n\n{found.END}"
    assert "In each cell" in found.rewritten(page, found.START, found.table(), found.END, "certified")


def test_the_page_has_the_place(script: Any):
    found = script("certified")
    assert found.rewritten(found.PAGE.read_text(), found.START, "x", found.END, "certified").count(found.START) == 1


def test_certified_training_has_the_worst_loss_when_the_radius_has_grown(script: Any, monkeypatch: pytest.MonkeyPatch):
    found, radii = script("certified"), []
    worst = found.verify.worst_loss
    monkeypatch.setattr(
        found.verify,
        "worst_loss",
        lambda *args, radius, **kwargs: radii.append(radius) or worst(*args, radius=radius, **kwargs),
    )
    train, _ = found.digits()
    monkeypatch.setattr(found, "BATCH", 4)
    found.trained(found.Case("dense", "usual", 0), train, 10)
    assert radii == []
    found.trained(found.Case("dense", "certified", 0), train, 10)
    assert radii == sorted(radii)
    assert radii[-1] == found.RADIUS
    assert 0 < radii[0] < found.RADIUS
