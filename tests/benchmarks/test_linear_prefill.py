"""The script that times the prototype for many tokens: its result, its record and its table."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

pytest.importorskip("pydantic")


@pytest.mark.sweep  # compiles for seconds
@pytest.mark.skipif(shutil.which("g++") is None, reason="no g++ is on the PATH")
def test_a_record_goes_on_and_is_written_as_a_table(
    script: Callable, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    prefill = script("linear_prefill")
    monkeypatch.setattr(prefill, "RECORD", tmp_path / "prefill.json")
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
    cases = [(64, 128, 3), (128, 64, 200)]
    prefill.record(cases[:1], 0.001)  # which checks the result
    first = json.loads(prefill.RECORD.read_text())["cases"][0]
    prefill.record(cases, 0.001)
    found = json.loads(prefill.RECORD.read_text())
    assert found["cases"][0] == first
    assert [row["tokens"] for row in found["cases"]] == [3, 200]
    page = prefill.with_table(f"{prefill.START}\n{prefill.END}")
    assert "| 64 → 128 | 3 |" in page
    assert prefill.START in prefill.PAGE.read_text()
