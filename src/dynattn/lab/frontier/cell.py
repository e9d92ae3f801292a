"""The units of a sweep: exams, and cells, each of which is one method in one exam.

A cell is addressed by its content: its key is a digest of the fields that decide its scores. So a sweep that was killed
knows what it has already, and records of several machines can be merged by key.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any, Literal

from dynattn.lab.figures import BASELINE, Record

Phase = Literal["prefill", "decode"]
"""``prefill``: one forward over the whole input. ``decode``: the answer is written token by token with a cache."""


def digest(fields: Any) -> str:
    """16 hexadecimal digits that tell two JSON values apart."""
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:16]


class Exam(Record):
    """A task at a length, which every method is put through.

    Attributes:
        model: as :func:`dynattn.lab.models.load` takes it.
        phase: the part of the model's work that the method takes part in.
        task: the name of the task.
        tokens: how many tokens each text has; None for tasks whose inputs have one size.
        items: how many items there are; None for the task's default.
        texts: a digest of the user's texts; None for the task's own.
        dtype: that the model works in. Older records have none, and are of float32.
    """

    model: str
    phase: Phase
    task: str
    tokens: int | None
    items: int | None
    texts: str | None
    dtype: str = "float32"

    @property
    def fields(self) -> dict[str, Any]:
        """What addresses are made of; float32 is left out, since those of older records know no dtype."""
        return self.model_dump(exclude={"dtype"} if self.dtype == "float32" else None)

    @property
    def key(self) -> str:
        """Address of the exam."""
        return digest(self.fields)

    @property
    def title(self) -> str:
        """For people: ``retrieval 512``."""
        return self.task if self.tokens is None else f"{self.task} {self.tokens}"


class Entry(Record):
    """A method that takes part in a sweep.

    Attributes:
        name: its short name, as :func:`dynattn.methods.parse` takes it; ``sdpa`` for dense attention.
        family: the name of the family, whose methods differ only in the budget.
        budget: the share of the pairs that it was asked to keep; None where it was named without one.
    """

    name: str
    family: str
    budget: float | None

    @property
    def label(self) -> str:
        """The same at every length, where names may hold sizes: ``window 1/4``."""
        if self.budget is None:
            return self.name
        share = f"1/{round(1 / self.budget)}" if abs(1 / self.budget % 1) < 1e-9 else f"{self.budget:g}"
        return f"{self.family} {share}"


DENSE = Entry(name=BASELINE, family="dense", budget=None)
"""Dense attention, with which every method is compared."""


class Cell(Record):
    """One method in one exam."""

    exam: Exam
    entry: Entry

    @property
    def key(self) -> str:
        """The address of the cell. Family and budget are not part of it, since they only decide how it is shown."""
        return digest([self.exam.fields, self.entry.name])


class Search(Record):
    """A family whose method is looked for that keeps a budget, as measured, in an exam.

    Attributes:
        exam: the exam.
        family: the name of the family.
        budget: the share that is to be kept.
    """

    exam: Exam
    family: str
    budget: float

    @property
    def key(self) -> str:
        """Address of the search."""
        return digest([self.exam.fields, self.family, self.budget])


class Race(Record):
    """A method timed against dense attention, on one machine.

    Attributes:
        exam: gives the input; tasks of equal length take equally long, so one of them is timed.
        entry: the method.
        machine: address of the machine in the record.
    """

    exam: Exam
    entry: Entry
    machine: str

    @property
    def key(self) -> str:
        """Address of the race."""
        return digest([self.exam.fields, self.entry.name, self.machine])
