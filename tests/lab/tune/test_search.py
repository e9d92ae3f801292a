"""The search ends within the limit, near it, in few measurements."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest

pytest.importorskip("transformers")

from dynattn.lab.tasks import Outcome, Prepared, Task
from dynattn.lab.tune import search as module
from dynattn.lab.tune.candidates import DENSE
from dynattn.lab.tune.choices import Choices
from dynattn.lab.tune.exams import Exam
from dynattn.lab.tune.search import Search
from dynattn.lab.tune.store import Store
from dynattn.lab.tune.times import Costs

LIMIT = 0.01
HEADS = 4
MODULES = 10
ITEMS = 96


@dataclass(frozen=True)
class _Nats(Task):
    name: ClassVar[str] = "nats"
    kinds = ("decoder",)
    metric = "NLL, nats"
    higher_is_better = False

    def prepare(self, pretrained) -> Prepared:
        raise NotImplementedError

    def evaluate(self, pretrained, data, advance) -> Outcome:
        raise NotImplementedError


def _searched(tmp_path, monkeypatch, power: float, scale: float, points: int = 4, in_time=lambda: True) -> Search:
    """A search where the loss is ``scale · harm^power`` nats."""
    draw = np.random.default_rng(0)
    shapes = {f"m{i}": 0 for i in range(MODULES)}
    harm = {module: {"window-8": list(10 ** draw.uniform(-5, -1, HEADS))} for module in shapes}
    choices = Choices(Costs(shapes, [{DENSE: 1.0, "window-8": 0.2}], [0.0], [HEADS]), harm, ("window-8",))
    dense = draw.normal(3, 0.5, ITEMS)
    noise = draw.normal(0, 0.003, ITEMS)
    exam = Exam(_Nats(), Prepared(tuple(map(str, range(ITEMS))), 1, (), 8, "", [None] * 6))
    now = {}

    def outcome(self, pretrained, implementation, advance):
        return Outcome(dense + scale * now["harm"] ** power + noise - noise.mean(), None)

    def assigned(pretrained, assignment):
        now["harm"] = choices.priced(0, assignment).harm
        return "tuned"

    monkeypatch.setattr(Exam, "outcome", outcome)
    monkeypatch.setattr(module, "set_assignment", assigned)
    found = Search(choices, (exam,), None, LIMIT, [ITEMS], Store(tmp_path / "s.json", "k"), [Outcome(dense, None)])  # type: ignore[arg-type]
    found.run(points, lambda: None, in_time)
    return found


@pytest.mark.parametrize("scale", [0.003, 0.03, 0.3, 3.0])
@pytest.mark.parametrize("power", [0.7, 1.0, 1.4])
def test_the_best_keeps_the_limit_and_uses_much_of_it(tmp_path, monkeypatch, power, scale):
    found = _searched(tmp_path, monkeypatch, power, scale)
    best = found.best()
    assert best is not None
    assert best.used <= 0.95
    whole = scale * found.choices.most.harm**power
    assert best.losses[0] > 0.1 * min(LIMIT, whole)


def test_where_everything_is_harmless_the_whole_path_is_taken(tmp_path, monkeypatch):
    found = _searched(tmp_path, monkeypatch, 1.0, 1e-6)
    best = found.best()
    assert best is not None
    assert best.point.saved > 0.9 * found.choices.most.saved


def test_where_everything_is_harmful_there_is_none(tmp_path, monkeypatch):
    assert _searched(tmp_path, monkeypatch, 0.5, 1e4).best() is None


def test_without_time_one_point_is_measured(tmp_path, monkeypatch):
    assert len(_searched(tmp_path, monkeypatch, 1.0, 0.3, in_time=lambda: False).measured) == 1


def test_other_limits_are_foretold_from_what_was_measured(tmp_path, monkeypatch):
    found = _searched(tmp_path, monkeypatch, 1.0, 0.3)
    for loss in (0.005, 0.02):
        harm = found.harm_at(loss)
        assert harm is not None
        assert 0.3 * harm == pytest.approx(loss, rel=0.2)


def test_a_method_for_all_heads_that_harms_less_than_it_seems_to_is_found(tmp_path, monkeypatch):
    """What the harm of one method means in loss is not what that of another does."""
    draw = np.random.default_rng(0)
    shapes = {f"m{i}": 0 for i in range(MODULES)}
    harm = {m: {"window-8": list(draw.uniform(0.001, 0.003, HEADS)), "nm-1-2": [0.01] * HEADS} for m in shapes}
    costs = Costs(shapes, [{DENSE: 1.0, "window-8": 0.9, "nm-1-2": 0.5}], [0.0], [HEADS])
    choices = Choices(costs, harm, ("window-8", "nm-1-2"))
    dense = draw.normal(3, 0.5, ITEMS)
    exam = Exam(_Nats(), Prepared(tuple(map(str, range(ITEMS))), 1, (), 8, "", [None] * 6))
    now: dict[str, float] = {}

    def assigned(pretrained, assignment):
        heads = [name for names in assignment.values() for name in names]
        now["lost"] = (heads.count("window-8") * 0.03 + heads.count("nm-1-2") * 0.004) / len(heads)
        return "tuned"

    monkeypatch.setattr(Exam, "outcome", lambda *_: Outcome(dense + now["lost"], None))
    monkeypatch.setattr(module, "set_assignment", assigned)
    found = Search(choices, (exam,), None, LIMIT, [ITEMS], Store(tmp_path / "s.json", "k"), [Outcome(dense, None)])  # type: ignore[arg-type]
    best = found.run(6, lambda: None, lambda: True)
    assert best is not None
    assert best.point.saved >= choices.everywhere("nm-1-2").saved
    assert any(each.point.assignment == choices.everywhere("nm-1-2").assignment for each in found.measured)


def test_what_is_hopeless_in_one_exam_is_not_put_through_the_other(tmp_path, monkeypatch):
    asked = []
    choices = Choices(
        Costs({"m": 0}, [{DENSE: 1.0, "window-8": 0.2}], [0.0], [1]), {"m": {"window-8": [1.0]}}, ("window-8",)
    )
    exams = tuple(
        Exam(_Nats(), Prepared(tuple(map(str, range(ITEMS))), 1, (), 8, "", [None] * 6), second=second)
        for second in (False, True)
    )
    dense = np.full(ITEMS, 3.0)
    monkeypatch.setattr(Exam, "outcome", lambda self, *_: asked.append(self.second) or Outcome(dense + 1, None))
    monkeypatch.setattr(module, "set_assignment", lambda *_: "tuned")
    base = [Outcome(dense, None)] * 2
    found = Search(choices, exams, None, LIMIT, [ITEMS] * 2, Store(tmp_path / "s.json", "k"), base)  # type: ignore[arg-type]
    assert not found.lost(choices.most, None, lambda: None).keeps
    assert asked == [False]
