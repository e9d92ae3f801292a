"""The script that times pages against dense decoding: what it checks, records and writes."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import ModuleType

import pytest
import torch

pytest.importorskip("transformers")
pytest.importorskip("pydantic")


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    """benchmarks/quest.py, which writes to a folder of the test's."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    found = importlib.import_module("quest")
    monkeypatch.setattr(found, "RECORD", tmp_path / "quest.json")
    monkeypatch.setattr(found, "STEPS", 1)
    return found


def test_a_record_goes_on_and_is_written_as_a_table(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    every = [script.Case(4, 2, 16, 100, dtype, 32) for dtype in (torch.float32, torch.bfloat16)]
    threads = torch.get_num_threads()
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
    script.record(every[:1], 0.01)
    first = json.loads(script.RECORD.read_text())["cases"][0]
    script.record(every, 0.01)
    found = json.loads(script.RECORD.read_text())
    assert found["cases"][0] == first
    assert [row["dtype"] for row in found["cases"]] == ["float32", "bfloat16"]
    assert first["read"] == pytest.approx((7 * 8 + 48 * 8) / (100 * 8))
    assert set(first["seconds"]) == {"sdpa", "dynattn:dense", "quest"}
    page = script.with_table(f"{script.START}\n{script.END}")
    assert "| 4 heads over 2, 16 wide, bfloat16 | 100 |" in page
    assert threads == torch.get_num_threads()
    with pytest.raises(ValueError, match="quest: the page must hold"):
        script.with_table("# Nothing")
    assert script.START in script.PAGE.read_text()


def test_what_is_wrong_is_not_timed(script: ModuleType) -> None:
    case = script.Case(4, 2, 16, 100, torch.float32, 32)
    wrong = {"quest": script.Way("dynattn:dense", script.FullCache)}
    with pytest.raises(SystemExit, match="quest: a way must compute its definition: quest differs"):
        script.check(wrong, case, case.tokens(100), (torch.randn(1, 4, 1, 16), *case.tokens(1)))
