"""The results of a sweep, as they are written to JSON."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from dynattn.lab.figures import Record, Spread
from dynattn.lab.frontier.cell import DENSE, Cell, Entry, Exam, Race, Search, digest

_NEAR = 0.1  # a share that is farther from a budget, as a part of it, is another budget


class Sheet(Record):
    """The description of an exam.

    Attributes:
        exam: the exam.
        title: the title of the task.
        metric: the name of its score.
        higher_is_better: whether a higher score is better.
        data: a line about the data, and how much of it there was.
        items: a name for each item.
        length: how many tokens one input has.
    """

    exam: Exam
    title: str
    metric: str
    higher_is_better: bool
    data: str
    items: list[str]
    length: int
    chance: float | None = None  # the score that guessing gives; older records have none
    least: float | None = None  # the score below which dense attention does too little for a comparison


class InputWork(Record):
    """The costs of one input with a method, by the method's definition and the pairs that it was seen to keep.

    Attributes:
        pairs: how many pairs are kept in all layers and heads; None where the method keeps no pairs.
        kept_mass: the dense softmax weight on them, a mean over the queries; None where the method keeps no pairs.
        attention: the FLOPs of attention, the method's own choosing included.
        total: the FLOPs of the whole forward.
        read: the bytes of the cache that a step of decoding reads, each row of keys and values once for the heads that
            share it; None for a forward, where the method keeps no pairs, and in older records.
        weights: the bytes of the linear layers' weights that a step of decoding reads; None for a forward and in older
            records.
    """

    pairs: float | None
    kept_mass: float | None
    attention: float
    total: float
    read: float | None = None
    weights: float | None = None


class Grade(Record):
    """One method in one exam.

    Attributes:
        cell: the method and the exam.
        scores: a score for each item.
        work: the costs of one input.
        seconds: how long the cell took in its worker, beside other workers. It is no measure of speed.
        machine: the address of the machine in the record.
    """

    cell: Cell
    scores: list[float]
    work: InputWork
    seconds: float
    machine: str


class Time(Record):
    """A race's result.

    Attributes:
        race: the method and the exam.
        length: how many tokens the input has.
        dense: the seconds of the model with dense attention.
        seconds: the seconds of the model with the method.
        speedup: the speed-up over dense attention, from the ratios within each round.
        samples: how many rounds were taken.
        disturbed: rounds in which other processes took the cores; None where the system does not tell.
    """

    race: Race
    length: int
    dense: Spread
    seconds: Spread
    speedup: Spread
    samples: int
    disturbed: int | None


class Failure(Record):
    """A cell or a race that could not be measured, and why; it is tried again when the sweep goes on."""

    exam: Exam
    entry: Entry
    reason: str


class Solved(Record):
    """A family's method that keeps a budget as measured, or comes nearest, see :mod:`dynattn.lab.frontier.budgets`.

    Attributes:
        search: the exam, on whose first input it was measured, the family and the budget.
        name: the short name of the method.
        kept: the share of dense attention's pairs or, while decoding, bytes that it was seen to keep.
    """

    search: Search
    name: str
    kept: float

    @property
    def in_reach(self) -> bool:
        """Whether it keeps the budget, but for a tenth of it."""
        return abs(self.kept / self.search.budget - 1) <= _NEAR


class Frontier(Record):
    """The whole record. Everything that was measured stands under its address.

    Attributes:
        machines: the machines that took part, see :func:`dynattn.lab.machine.machine`.
        sheets: the exams.
        grades: quality and work of each cell.
        times: the results of the races.
        failures: the cells and races that could not be measured.
        seconds: how long all runs took together.
        measured: whether methods keep their budgets as measured; else they were only asked to.
        solved: the methods that do.
        dtype: that the model works in. Older records have none, and are of float32.
    """

    schema_version: Literal[1] = 1
    model: str
    kind: str
    description: str
    machines: dict[str, dict[str, Any]]
    sheets: dict[str, Sheet]
    grades: dict[str, Grade]
    times: dict[str, Time]
    failures: dict[str, Failure]
    seconds: float
    measured: bool = False
    solved: dict[str, Solved] = Field(default_factory=dict)
    dtype: str = "float32"

    def grade(self, exam: Exam, entry: Entry = DENSE) -> Grade | None:
        """The grade of a method in an exam; None where it was not measured."""
        return self.grades.get(Cell(exam=exam, entry=entry).key)


def address(machine: dict[str, Any]) -> str:
    """The address of a machine: the same for every run on it with the same versions and threads."""
    return digest({name: value for name, value in machine.items() if name not in ("date", "load")})
