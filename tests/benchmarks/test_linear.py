"""The script that times linear layers of a few tokens: what it checks, records and writes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

pytest.importorskip("pydantic")


def test_a_record_goes_on_and_is_written_as_a_table(
    script: Callable, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    linear = script("linear")
    monkeypatch.setattr(linear, "RECORD", tmp_path / "linear.json")
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
    every = [linear.Case(32, 40, dtype, 2) for dtype in (torch.float32, torch.bfloat16)]
    linear.record(every[:1], 0.001, 1 << 14)
    first = json.loads(linear.RECORD.read_text())["cases"][0]
    linear.record(every, 0.001, 1 << 14)
    found = json.loads(linear.RECORD.read_text())
    assert found["cases"][0] == first
    assert [(row["dtype"], row["layers"]) for row in found["cases"]] == [("float32", 4), ("bfloat16", 7)]
    names = {"torch", *(f"{kind} {density}" for kind in ("rows", "outputs") for density in (1, 0.7, 0.5, 0.3))}
    assert set(first["rows"]) - {"torch, prepacked"} == names | {"weights 1:2", "weights 2:4"}
    assert first["rows"]["rows 1"]["bytes"] == first["rows"]["torch"]["bytes"] == 32 * 40 * 4
    assert first["rows"]["weights 1:2"]["bytes"] == 40 * (16 * 4 + 4)  # a block, and half a word filled up
    page = linear.with_table(f"{linear.START}\n{linear.END}")
    assert "| 32 → 40 | 2 |" in page
    with pytest.raises(ValueError, match="linear: the page must hold"):
        linear.with_table("# Nothing")
    assert linear.START in linear.PAGE.read_text()


def test_what_is_wrong_is_not_timed(script: Callable) -> None:
    linear = script("linear")
    case = linear.Case(32, 40, torch.float32, 2)
    wrong = linear.Way([lambda: torch.zeros(2, 40)], torch.ones(2, 40, dtype=torch.float64), 1.0)
    with pytest.raises(SystemExit, match="linear: a way must compute its definition: rows 1 differs"):
        linear.check(case, "rows 1", wrong)
