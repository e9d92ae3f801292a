"""benchmarks/greedy.py on a tiny model: what it records, and the tables that it writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers")
pytest.importorskip("pydantic")

from dynattn.lab.models import load
from dynattn.lab.prune.settings import Settings


@pytest.fixture
def tiny(script: Any, tiny_decoder: Path, many_texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The script with a tiny model, whole blocks and one draw."""
    found = script("greedy")
    sizes: dict[str, Any] = {"items": 6, "tokens": 64, "text": many_texts, "blocks_only": True}

    def settings(_: str, tolerance: float) -> Settings:
        return Settings(model=str(tiny_decoder), tolerance=tolerance, **sizes)

    monkeypatch.setattr(found, "RESULTS", tmp_path)
    monkeypatch.setattr(found, "_settings", settings)
    monkeypatch.setattr(found, "load", lambda _: load(str(tiny_decoder)))
    for name, value in (("TOLERANCES", (0.5,)), ("DEPTHS", (1,))):
        monkeypatch.setattr(found, name, {"minilm": value, "smollm2": value})
    monkeypatch.setattr(found, "DRAWS", 1)
    monkeypatch.setattr(found, "SECONDS", 0.01)
    monkeypatch.setattr(found.torch, "set_num_threads", lambda _: None)  # other tests run on theirs
    return found


def test_records_are_written_once_and_shown(tiny: Any, tmp_path: Path):
    for what in (tiny.search, tiny.depth, tiny.speed):
        what("minilm")
    written = {path.name: path.read_text() for path in tmp_path.glob("*.json")}
    assert set(written) == {f"minilm-{what}.json" for what in ("search-0.5", "random-0.5", "depth", "speed")}
    tiny.search("minilm")
    tiny.depth("minilm")
    assert {name: (tmp_path / name).read_text() for name in written} == written
    page = tiny.with_tables(tiny.PAGE.read_text())
    assert "Not measured yet" not in page
    assert "| minilm | 50% | 4 |" in page
    assert "| minilm | 1 |" in page
    assert "1.00×" in page
