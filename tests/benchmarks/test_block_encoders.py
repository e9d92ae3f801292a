"""benchmarks/block_encoders.py: a record of mass, quality and time that goes on after a kill, and its table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers")
pytest.importorskip("pydantic")

from dynattn.lab.models import load
from dynattn.lab.tasks.retrieval import Retrieval
from dynattn.lab.tasks.texts import read

NAMES = ["dense", "clustered-blocktopk-0.5-b8-sampled-w0-s0"]


@pytest.fixture
def encoders(script: Any, tiny_encoder: Path, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The script with a tiny model and four passages."""
    module = script("block_encoders")
    monkeypatch.setattr(module, "load", lambda _: load(str(tiny_encoder)))
    monkeypatch.setattr(module, "RESULTS", tmp_path)
    monkeypatch.setattr(module, "sources", dict)
    monkeypatch.setattr(module, "task", lambda _: Retrieval(items=4, tokens=64, queries=2, texts=read(texts)))
    return module


def test_a_record_goes_on_and_a_better_method_fails_it(encoders: Any, tmp_path: Path) -> None:
    assert encoders.measure("minilm", NAMES) == 0
    path = tmp_path / "minilm.json"
    record = json.loads(path.read_text())
    assert record["kept"]["dense"] == [1.0, 1.0]
    mass, density = record["kept"][NAMES[1]]
    assert density < mass < 1
    record["methods"][NAMES[1]]["retrieval"] = [2.0, 2.01, 2.02, 2.0]
    record["methods"]["dense"]["retrieval"] = [0.5, 0.51, 0.5, 0.52]
    path.write_text(json.dumps(record))
    assert encoders.measure("minilm", [*NAMES, "blockskip-1.0"]) == 1
    again = json.loads(path.read_text())
    assert again["methods"][NAMES[1]]["retrieval"] == [2.0, 2.01, 2.02, 2.0]  # not measured again
    assert len(again["methods"]["blockskip-1.0"]["retrieval"]) == 4


def test_times_come_on_top_method_by_method(encoders: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoders.measure("minilm", NAMES)
    timed: list[str] = []
    monkeypatch.setattr(encoders, "timed", lambda _, name, causal: {"speedup": timed.append(name) or 1.5})
    encoders.clock("minilm")
    encoders.measure("minilm", ["blockskip-1.0"])
    encoders.clock("minilm")
    assert timed == [*NAMES, "blockskip-1.0"]
    record = json.loads((tmp_path / "minilm.json").read_text())
    assert list(record["time"]["methods"]) == timed
    assert record["time"]["shape"][1:] == [2, 64, 16]
