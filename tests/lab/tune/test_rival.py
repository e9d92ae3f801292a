"""One method for all heads, held against what was proved, on the very items."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("transformers")
pytest.importorskip("pydantic")

from dynattn.lab.tune import rival
from dynattn.lab.tune.choices import Point
from dynattn.lab.tune.store import Store


class _Exam:
    """Every measurement gives another score."""

    task = SimpleNamespace(name="nats")

    def __init__(self) -> None:
        self.looked: list[int] = []

    def portion(self, start: int, stop: int) -> _Exam:
        self.looked.append(stop - start)
        return self

    def outcome(self, pretrained, implementation, advance) -> float:
        return float(len(self.looked)) if implementation == "tuned" else 0.0

    def scores(self, own: float, dense: float) -> np.ndarray:
        return np.full(2, own)

    def loss(self, own: np.ndarray, dense: np.ndarray) -> float:
        return float((own - dense).mean())


def test_a_run_that_goes_on_takes_no_measurement_of_other_heads_or_items(monkeypatch, tmp_path):
    monkeypatch.setattr(rival, "set_assignment", lambda *_: "tuned")
    store, exam = Store(tmp_path / "stages.json", "key"), _Exam()

    def loss(heads: str = "nm-1-2", looks: int = 3, data: int = 0) -> float:
        point, lost = Point(-1, {"m": (heads,)}, 0.0, 0.0), SimpleNamespace(looks=looks, loss=0.0)
        its: tuple[Any, ...] = ("name", point, 1.0, lost, exam, data, None, store, lambda: None)
        return rival.measure(*its).loss

    assert [loss(), loss("window-16-s4"), loss(looks=4), loss(data=1)] == [1, 2, 3, 4]
    assert [loss(), loss("window-16-s4"), loss(looks=4), loss(data=1)] == [1, 2, 3, 4]
