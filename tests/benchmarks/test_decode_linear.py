"""benchmarks/decode_linear.py on a tiny model: what is recorded once, and the table."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")
pytest.importorskip("pydantic")

from dynattn.lab.tasks.texts import read


def test_cases_are_recorded_once_and_told(
    script: Any, tiny_decoder: Path, many_texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    linear = script("decode_linear")
    texts = read(many_texts)
    monkeypatch.setattr("dynattn.lab.calibration.wikipedia", lambda: texts[-2:])
    monkeypatch.setattr(linear.held_out, "texts", lambda kind, _: texts[:2])
    monkeypatch.setattr(linear.held_out, "sources", dict)
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
    names = ("teal-0.5", "chess-0.5", "nmweight-2-4-wanda")
    changes = {
        "RECORD": tmp_path / "linear.json", "MODEL": str(tiny_decoder), "METHODS": names, "CALIBRATED": 2,
        "NAMES": ("dense", "dense-in-place", *names), "TEXTS": 2, "AFTER": 8, "STEPS": 2,
        "interleaved": partial(linear.interleaved, rounds=2),
    }  # fmt: skip
    for name, value in changes.items():
        monkeypatch.setattr(linear, name, value)
    assert linear.table() == "Not measured yet."
    cases = [linear.Case(kind, torch.float32, 24) for kind in ("speed", "loss")]
    linear.record(cases[:1], 0.01)
    assert "| `teal-0.5` |" in linear.table()
    linear.record(cases, 0.01)
    written = linear.RECORD.read_text()
    linear.record(cases, 0.01)
    assert linear.RECORD.read_text() == written
    speed, lost = json.loads(written)["cases"]
    assert set(speed["rows"]) == {"dense", "dense-in-place", *names}
    assert len(lost["texts"]) == 3 * 2
    assert lost["rows"]["dense-in-place"]["mean"] == pytest.approx(0, abs=1e-5)
    assert all(abs(lost["rows"][name]["mean"]) > 1e-5 for name in names)
    table = linear.table()
    assert "| after 24 tokens | float32: tokens/s |" in table
    assert "| `dense-in-place` |" in table
    assert linear.START in linear.PAGE.read_text()
    assert linear.END in linear.PAGE.read_text()
