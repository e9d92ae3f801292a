"""The JSON file of a sweep, which is written whole after every result, so that a kill loses no result; and merging."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dynattn.lab.figures import BASELINE
from dynattn.lab.frontier.cell import Cell, Race, Search
from dynattn.lab.frontier.results import Failure, Frontier, Grade, Sheet, Solved, Time
from dynattn.lab.records import read_record, write_record

_DRIFT = {"float32": 1e-3, "float16": 1e-2, "bfloat16": 1e-1}
"""A larger change in a score of dense attention comes from other data or weights, and not from rounding, which moves a
logit of 16 by up to 0.03 in bfloat16."""


class Store:
    """A record and its file.

    Attributes:
        found: what there is so far.
    """

    def __init__(self, path: Path, empty: Frontier) -> None:
        """Take up the record at ``path``, or begin with ``empty``.

        Args:
            path: the path of the file; its folder is made if need be.
            empty: tells the model and the dtype.

        Raises:
            ValueError: the file is of another model or dtype, its budgets are meant otherwise, or it is not a record.
        """
        self._path = path
        self.found = load(path) if path.exists() else empty
        _check_same_model(self.found, empty)

    def forget_failures(self) -> None:
        """Forget all failures: what failed is tried again, or is not asked for any more."""
        self.found = self.found.model_copy(update={"failures": {}})

    def lacks(self, wanted: Cell | Race | Search) -> bool:
        """Whether this has not been measured yet."""
        there = {Cell: self.found.grades, Race: self.found.times, Search: self.found.solved}
        return wanted.key not in there[type(wanted)]

    def add(
        self, wanted: Cell | Race | Search, *, machines: dict[str, dict[str, Any]], seconds: float, **found: Any
    ) -> None:
        """Add what was measured, and write the file.

        Args:
            wanted: what was measured; a failure of it that was recorded before is forgotten.
            machines: that measured it, by address.
            seconds: since the last call.
            found: sheets, grades, times, failures, solved: each by address.

        Raises:
            ValueError: an exam asks other items than it did before.
        """
        failures = {key: failure for key, failure in self.found.failures.items() if key != wanted.key}
        base = self.found.model_copy(update={"failures": failures})
        more = base.model_copy(
            update={"sheets": {}, "grades": {}, "times": {}, "failures": {}, "solved": {}}
            | {"machines": machines, "seconds": seconds}
            | found
        )
        self.found = merge([base, more])
        save(self.found, self._path)


def save(found: Frontier, path: Path) -> None:
    """Write a record. After a kill either the earlier record or this one is there, whole."""
    write_record(found, path)


def load(path: Path) -> Frontier:
    """Read a record.

    Raises:
        ValueError: there is no such file, it is not one, or a method in it has not a score for each item of its exam.
    """
    found = read_record(Frontier, path, "name a record that dynattn frontier wrote, or give another --output")
    for grade in found.grades.values():
        sheet = found.sheets.get(grade.cell.exam.key)
        if sheet is not None and len(grade.scores) != len(sheet.items):
            raise ValueError(
                f"frontier: {path} must hold a score for each item: {grade.cell.entry.name} has {len(grade.scores)} in "
                f"{grade.cell.exam.title}, which has {len(sheet.items)}; another version wrote it, or it was changed: "
                "give another --output"
            )
    return found


def merge(records: Sequence[Frontier]) -> Frontier:
    """One record from several of one model. Of what two have measured, the first one's stands.

    Args:
        records: at least one.

    Returns:
        The record. What one could not measure and another could is no failure.

    Raises:
        ValueError: the records are of different models or dtypes, budgets are measured in one and asked for in another,
            an exam has other items in one than in another, or dense attention scores otherwise there.
    """
    if not records:
        raise ValueError("merge: records must not be empty: name at least one file")
    first = records[0]
    sheets: dict[str, Sheet] = {}
    grades: dict[str, Grade] = {}
    times: dict[str, Time] = {}
    failures: dict[str, Failure] = {}
    solved: dict[str, Solved] = {}
    machines: dict[str, dict[str, Any]] = {}
    for record in records:
        _check_same_model(record, first)
        for key, sheet in record.sheets.items():
            _check_same_items(sheets.setdefault(key, sheet), sheet)
        for key, grade in record.grades.items():
            _check_same_scores(grades.setdefault(key, grade), grade)
        times = record.times | times
        failures = record.failures | failures
        solved = record.solved | solved
        machines = record.machines | machines
    done = grades.keys() | times.keys() | solved.keys()
    return Frontier(
        model=first.model, kind=first.kind, description=first.description, machines=machines, sheets=sheets,
        grades=grades, times=times, failures={key: why for key, why in failures.items() if key not in done},
        seconds=sum(record.seconds for record in records), measured=first.measured, solved=solved,
        dtype=first.dtype,
    )  # fmt: skip


def _check_same_model(record: Frontier, other: Frontier) -> None:
    if (record.model, record.description) != (other.model, other.description):
        raise ValueError(
            f"frontier: a record must be of one model: got {record.model} ({record.description}) and {other.model} "
            f"({other.description}); give another --output, or merge records of one model"
        )
    if record.dtype != other.dtype:
        raise ValueError(
            f"frontier: a record must be of one dtype: of {record.model} one is of {record.dtype}, another of "
            f"{other.dtype}; give another --output, or merge records of one dtype"
        )
    if record.measured != other.measured:
        raise ValueError(
            f"frontier: budgets must be meant alike in a record: of {record.model} they are what methods are measured "
            "to keep in one, and what they are asked to keep in another; give another --output with --measured"
        )


def _check_same_items(there: Sheet, new: Sheet) -> None:
    if there.items != new.items or there.length != new.length:
        raise ValueError(
            f"frontier: an exam must ask the same items everywhere: {there.exam.title} does not ({there.data}; "
            f"{new.data}); data or packages differ: begin a new record with another --output"
        )


def _check_same_scores(there: Grade, new: Grade) -> None:
    """Compare the scores of dense attention. Methods that choose may differ by more where rounding flips a choice."""
    if there is new or there.cell.entry.name != BASELINE:
        return
    if np.abs(np.subtract(there.scores, new.scores)).max() > _DRIFT[there.cell.exam.dtype]:
        raise ValueError(
            f"frontier: dense attention must score alike in all records: in {there.cell.exam.title} it does not; data, "
            "weights or packages differ, so differences to it would not be paired: do not merge these"
        )
