"""Records made by hand, for what needs no model."""

from __future__ import annotations

from collections.abc import Sequence

from dynattn.lab.figures import Spread
from dynattn.lab.frontier.cell import DENSE, Cell, Entry, Exam, Phase, Race
from dynattn.lab.frontier.results import Frontier, Grade, InputWork, Sheet, Time

MACHINE = {"processor": "a", "threads": 2, "torch": "1", "date": "today", "load": 0.5}


def exam(task: str = "retrieval", tokens: int | None = 64, phase: Phase = "prefill", items: int | None = None) -> Exam:
    return Exam(model="m", phase=phase, task=task, tokens=tokens, items=items, texts=None)


def entry(family: str, budget: float | None = None, name: str = "") -> Entry:
    return Entry(name=name or f"{family}-{budget}", family=family, budget=budget)


def sheet(of: Exam, items: int = 8, higher_is_better: bool = True) -> Sheet:
    labels = [f"item {i}" for i in range(items)]
    return Sheet(
        exam=of, title="Some task.", metric="MRR@10", higher_is_better=higher_is_better, data="some data",
        items=labels, length=64,
    )  # fmt: skip


def grade(of: Exam, who: Entry, scores: Sequence[float], pairs: float | None = 50.0, total: float = 900.0) -> Grade:
    work = InputWork(pairs=pairs, kept_mass=None if pairs is None else 0.8, attention=total / 3, total=total)
    return Grade(cell=Cell(exam=of, entry=who), scores=list(scores), work=work, seconds=1.0, machine="0")


def time(of: Exam, who: Entry, speedup: float, machine: str = "0") -> Time:
    return Time(
        race=Race(exam=of, entry=who, machine=machine), length=64, dense=_spread(1.0), seconds=_spread(1 / speedup),
        speedup=_spread(speedup), samples=5, disturbed=1,
    )  # fmt: skip


def record(sheets: Sequence[Sheet], grades: Sequence[Grade], times: Sequence[Time] = (), model: str = "m") -> Frontier:
    return Frontier(
        model=model, kind="encoder", description="a model", machines={"0": MACHINE},
        sheets={one.exam.key: one for one in sheets}, grades={one.cell.key: one for one in grades},
        times={one.race.key: one for one in times}, failures={}, seconds=60.0,
    )  # fmt: skip


def dense(of: Exam, scores: Sequence[float]) -> Grade:
    return grade(of, DENSE, scores, pairs=100.0, total=1000.0)


def _spread(value: float) -> Spread:
    return Spread(median=value, q1=value, q3=value)
