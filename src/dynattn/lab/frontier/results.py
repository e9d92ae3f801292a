"""What a sweep found, as it is written to JSON."""

from __future__ import annotations

from typing import Any, Literal

from dynattn.lab.figures import Record, Spread
from dynattn.lab.frontier.cell import DENSE, Cell, Entry, Exam, Race, digest


class Sheet(Record):
    """What an exam asks.

    Attributes:
        exam: which one.
        title: of the task.
        metric: what a score is.
        higher_is_better: which way is good.
        data: what it was and how much of it.
        items: a name for each.
        length: tokens of one input.
    """

    exam: Exam
    title: str
    metric: str
    higher_is_better: bool
    data: str
    items: list[str]
    length: int
    chance: float | None = None  # the score that guessing gives; records of before have none


class Work(Record):
    """What one input costs with a method: by its definition, on the pairs that it was seen to keep.

    Attributes:
        pairs: query-key pairs kept, all layers and heads; None where the method has no pairs.
        kept_mass: dense softmax weight on them, mean over the queries; None likewise.
        attention: FLOPs of attention, the method's own choosing included.
        total: FLOPs of the whole forward.
    """

    pairs: float | None
    kept_mass: float | None
    attention: float
    total: float


class Grade(Record):
    """One method in one exam.

    Attributes:
        cell: which.
        scores: one an item.
        work: of one input.
        seconds: that the cell took in its worker, beside others: not a measure of speed.
        machine: address of the machine in the record.
    """

    cell: Cell
    scores: list[float]
    work: Work
    seconds: float
    machine: str


class Time(Record):
    """A race's result.

    Attributes:
        race: which.
        length: tokens of the input.
        dense: seconds of the model with dense attention.
        seconds: with the method.
        speedup: over dense, from the ratios within each round.
        samples: rounds.
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


class Frontier(Record):
    """All of it: everything measured stands under the address of what was measured.

    Attributes:
        machines: that took part, see :func:`dynattn.lab.machine.machine`.
        sheets: exams.
        grades: quality and work.
        times: speed.
        failures: what could not be measured.
        seconds: all runs together.
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

    def grade(self, exam: Exam, entry: Entry = DENSE) -> Grade | None:
        """The grade of a method in an exam; None where it was not measured."""
        return self.grades.get(Cell(exam=exam, entry=entry).key)


def address(machine: dict[str, Any]) -> str:
    """The address of a machine: the same for every run on it with the same versions and threads."""
    return digest({name: value for name, value in machine.items() if name not in ("date", "load")})
