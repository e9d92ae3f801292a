"""One method for all heads, held against what was proved, on the very items."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest

pytest.importorskip("transformers")
pytest.importorskip("pydantic")

from dynattn.lab.tasks import Outcome, Prepared, Task
from dynattn.lab.tune import rival
from dynattn.lab.tune.choices import Point
from dynattn.lab.tune.exams import Exam
from dynattn.lab.tune.prove import dense_scores
from dynattn.lab.tune.store import Store


@dataclass(frozen=True)
class _Nats(Task):
    name: ClassVar[str] = "nats"
    kinds = ("decoder",)
    metric = "NLL, nats"
    higher_is_better = False

    def prepare(self, pretrained) -> Prepared:
        raise NotImplementedError

    def evaluate(self, pretrained: Any, data, advance) -> Outcome:
        raise NotImplementedError


@pytest.fixture
def exam(monkeypatch) -> Exam:
    """Whose dense scores are 3; every measurement gives a larger score."""
    seen = []

    def outcome(self, pretrained, implementation, advance):
        assert implementation == "tuned"
        seen.append(self.items)
        return Outcome(np.full(self.items, 3 + 0.001 * len(seen)), None)

    monkeypatch.setattr(rival, "set_assignment", lambda *_: "tuned")
    monkeypatch.setattr(Exam, "outcome", outcome)
    return Exam(_Nats(), Prepared(tuple(map(str, range(20))), 20, (), 8, "", [None] * 20), clustered=True)


def _measured(exam: Exam, store: Store, heads: str = "nm-1-2", looks: int = 16, data: int = 0, limit: float = 0.01):
    for entry in range(looks):
        store.once(dense_scores(data, exam, entry), lambda: [3.0])
    lost: Any = SimpleNamespace(looks=looks, loss=0.0, worst=2 * limit)
    point = Point(-1, {"m": (heads,)}, 0.0, 0.0)
    return rival.measure("name", point, 1.0, lost, exam, data, None, store, lambda: None, limit, 1)  # type: ignore[arg-type]


def test_a_run_that_goes_on_takes_no_measurement_of_other_heads_or_items(exam, tmp_path):
    store = Store(tmp_path / "stages.json", "key")
    asked: list[dict[str, Any]] = [{}, {"heads": "window-16-s4"}, {"looks": 17}, {"data": 1}]
    for _ in range(2):  # the dense model's scores are those of the proof
        found = [_measured(exam, store, **each).loss for each in asked]
        assert found == pytest.approx([np.expm1(0.001 * k) for k in (1, 2, 3, 4)])


def test_the_single_method_is_put_to_the_test_that_the_tuned_one_passed(exam, tmp_path):
    store = Store(tmp_path / "stages.json", "key")
    good = _measured(exam, store)
    assert good.proved
    assert good.bound is not None
    assert good.loss < good.bound <= good.limit == 0.01
    bad = _measured(exam, store, "window-16-s4", limit=0.001)
    assert not bad.proved
    assert not _measured(exam, store, "nm-2-4", looks=5).proved  # too few items
