"""The script that times linear layers of many tokens: its results, its record and its table."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch

pytest.importorskip("pydantic")


def test_a_record_goes_on_and_is_written_as_a_table(
    script: Callable, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    prefill = script("linear_prefill")
    monkeypatch.setattr(prefill, "RECORD", tmp_path / "prefill.json")
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
    monkeypatch.setattr(prefill, "interleaved", partial(prefill.interleaved, min_sample=None))  # samples of one call
    cases = [(1, 64, 48, 40), (2, 32, 64, 33)]
    prefill.record(cases[:1], 0.001)  # which checks the results
    first = json.loads(prefill.RECORD.read_text())["cases"][0]
    prefill.record(cases, 0.001)
    found = json.loads(prefill.RECORD.read_text())
    assert found["cases"][0] == first
    assert [row["tokens"] for row in found["cases"]] == [40, 33]
    assert {"torch", "1:2", "8:16", "rows, 1:2"} <= set(first["rows"])
    page = prefill.with_table(f"{prefill.START}\n{prefill.END}")
    assert "| 1 | 64 → 48 | 40 |" in page
    assert prefill.START in prefill.PAGE.read_text()
    assert len(prefill.cases()) in (20, 40)


def test_a_way_that_computes_something_else_is_not_timed(script: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    prefill = script("linear_prefill")
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
    monkeypatch.setattr(prefill, "linear_nm_act", lambda x, weight_t, **_: x @ weight_t)
    with pytest.raises(SystemExit, match="a way must compute its definition: 1:2 differs"):
        prefill.measure(1, 32, 16, 4, 0.001)
