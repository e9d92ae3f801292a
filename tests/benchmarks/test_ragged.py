"""The script that times heads of different lengths: what it checks, records and writes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")
pytest.importorskip("pydantic")


def test_a_record_goes_on_and_is_written_as_a_table(script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    found = script("ragged")
    monkeypatch.setattr(found, "RECORD", tmp_path / "ragged.json")
    monkeypatch.setattr(found, "STEPS", 2)
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
    cases = [found.Case(4, 2, 16, 16, dtype) for dtype in (torch.float32, torch.bfloat16)]
    assert found.table() == "Not recorded yet."
    found.record(cases[:1], 0.01)
    first = json.loads(found.RECORD.read_text())["cases"]
    found.record(cases, 0.01)
    rows = json.loads(found.RECORD.read_text())["cases"]
    assert rows[:1] == first
    assert [row["dtype"] for row in rows] == ["float32", "bfloat16"]
    assert set(rows[0]["rows"]) == {found.KERNEL, found.MASK, found.LOOP, found.EQUAL}
    assert "4 heads over 2, 16 tokens each, bfloat16" in found.table()
    assert found.rewritten(found.PAGE.read_text(), found.START, "x", found.END, "ragged").count(found.START) == 1


def test_heads_hold_what_is_said_and_the_kernel_reads_them(script: Any, monkeypatch: pytest.MonkeyPatch):
    found = script("ragged")
    case = found.Case(4, 2, 16, 16, torch.float32)
    assert (case.lengths(False), case.lengths(True)) == ([4, 28], [16, 16])
    layer = found.cut(case, equal=False)
    assert (layer.positions >= 0).sum(-1).tolist() == [[4, 28]]
    assert layer.held == 28
    token = (torch.randn(1, 4, 1, 16), *case.tokens(1))
    found.check(case, token)
    monkeypatch.setattr(found, "by_head", lambda layer, case, query, key, value: query * 0)
    with pytest.raises(SystemExit, match="ragged: all ways must agree"):
        found.check(case, token)
