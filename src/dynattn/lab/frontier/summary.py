"""Summarises a record: what each method at each budget retains of dense attention's quality, and what it costs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from dynattn.lab.figures import Interval
from dynattn.lab.frontier.cell import DENSE, Cell, Entry, Exam, Phase
from dynattn.lab.frontier.methods import baselines
from dynattn.lab.frontier.results import Frontier, Grade, InputWork, Sheet, Time
from dynattn.lab.frontier.shares import lead, retained, together
from dynattn.lab.statistics import at_chance


class ExamResult(NamedTuple):
    """A contender in one exam.

    Attributes:
        sheet: the description of the exam.
        grade: the grade that was measured.
        retained: the share of dense attention's quality that it retains.
        density: the pairs kept over the pairs of dense attention; None where the method keeps no pairs.
        kept: what budgets are shares of: as ``density`` or, while decoding, the bytes of the cache that a step reads
            over those of dense attention; None where it is not known.
        flops: the FLOPs of the model over those with dense attention.
        attention: the FLOPs of attention alone over those of dense attention.
        time: the seconds of the model over those with dense attention in the same run; None where it was not timed.
        faster: whether it is faster in three quarters of the rounds; None where it was not timed.
        at_chance: whether dense attention does no better than guessing there, or less than the task demands.
    """

    sheet: Sheet
    grade: Grade
    retained: Interval
    density: float | None
    flops: float
    attention: float
    time: float | None
    faster: bool | None = None
    at_chance: bool = False
    kept: float | None = None


@dataclass(frozen=True)
class Contender:
    """A method at a budget, with the results of all exams of a phase that it took.

    Attributes:
        entry: the entry of the first exam: names may hold sizes that follow the length.
        results: a result for each exam.
        leads: by the baseline's family, what is retained less what the baseline of the same budget retains: the mean
            over the exams. Empty for the baselines themselves and for methods without a budget.
    """

    entry: Entry
    results: tuple[ExamResult, ...]
    leads: dict[str, Interval]

    @property
    def label(self) -> str:
        """Its name for people."""
        return self.entry.label

    @property
    def names(self) -> tuple[str, ...]:
        """Its short names; a single one where the name is the same at all lengths."""
        return tuple(dict.fromkeys(result.grade.cell.entry.name for result in self.results))

    @property
    def retained(self) -> Interval:
        """Mean over the exams."""
        return together([result.retained for result in self.results])

    @property
    def worst(self) -> ExamResult:
        """The result of the exam that suffers most."""
        return min(self.results, key=lambda result: result.retained.mean)

    @property
    def least(self) -> float | None:
        """The share that is retained in every exam: the lowest of the lower bounds; None where an exam has too few
        items."""
        bounds = [result.retained.low for result in self.results]
        known = [bound for bound in bounds if bound is not None]
        return min(known) if len(known) == len(bounds) else None

    @property
    def faster(self) -> bool:
        """Whether the model is faster than with dense attention wherever it was timed, in three quarters of rounds."""
        return all(result.faster is not False for result in self.results)

    @property
    def density(self) -> float | None:
        """Mean over the exams."""
        return self.mean(lambda result: result.density)

    @property
    def kept_mass(self) -> float | None:
        """Mean over the exams."""
        return self.mean(lambda result: result.grade.work.kept_mass)

    @property
    def flops(self) -> float:
        """FLOPs of the model over those under dense attention, the mean over the exams."""
        return float(np.mean([result.flops for result in self.results]))

    @property
    def attention(self) -> float:
        """FLOPs of attention, over dense: mean over the exams."""
        return float(np.mean([result.attention for result in self.results]))

    @property
    def time(self) -> float | None:
        """Time of the model over that under dense attention: geometric mean, as befits ratios, over the timed exams."""
        found = self.mean(lambda result: None if result.time is None else math.log(result.time))
        return None if found is None else math.exp(found)

    @property
    def beats_baselines(self) -> bool | None:
        """Whether it retains more than every baseline of its budget, beyond noise; None where there is none."""
        if not self.leads:
            return None
        return all(found.low is not None and found.low > 0 for found in self.leads.values())

    def mean(self, figure: Callable[[ExamResult], float | None]) -> float | None:
        """The mean of a figure over the exams that have it."""
        found = [value for value in map(figure, self.results) if value is not None]
        return float(np.mean(found)) if found else None


def phases(found: Frontier) -> list[Phase]:
    """The phases that were measured."""
    return list(dict.fromkeys(sheet.exam.phase for sheet in found.sheets.values()))


def exams(found: Frontier, phase: Phase) -> list[Sheet]:
    """Exams of a phase in which dense attention was measured and has something to lose, by task and length.

    Those in which it does no better than guessing, or less than the task demands, are left out, unless there are no
    others.
    """
    chosen = [sheet for sheet in found.sheets.values() if sheet.exam.phase == phase and _can_lose(found, sheet)]
    chosen = [sheet for sheet in chosen if not _fails(found, sheet)] or chosen
    return sorted(chosen, key=lambda sheet: (sheet.exam.task, sheet.exam.tokens or 0, len(sheet.items)))


def titles(sheets: Sequence[Sheet]) -> dict[str, str]:
    """Titles that tell exams apart, by address: with the number of items where a task was asked in two sizes."""
    given = [sheet.exam.title for sheet in sheets]
    return {
        sheet.exam.key: sheet.exam.title + (f" ({len(sheet.items)} items)" if given.count(sheet.exam.title) > 1 else "")
        for sheet in sheets
    }


def contenders(found: Frontier, phase: Phase) -> list[Contender]:
    """Every method at every budget, in the order of the record; dense attention is not among them.

    Args:
        found: the record.
        phase: the phase of the model's work.
    """
    times = _times(found, phase)
    grouped: dict[str, list[ExamResult]] = {}
    for sheet in exams(found, phase):
        for grade in found.grades.values():
            if grade.cell.exam == sheet.exam and grade.cell.entry != DENSE:
                grouped.setdefault(grade.cell.entry.label, []).append(_result(found, sheet, grade, times))
    return [
        Contender(own[0].grade.cell.entry, tuple(own), _leads(found, own, grouped)) for own in grouped.values()
    ]  # fmt: skip


def kept(work: InputWork, dense: InputWork) -> float | None:
    """What budgets are shares of: the bytes of the cache that a step reads or, for a forward, the pairs kept, over
    those of dense attention.

    Args:
        work: the method's.
        dense: dense attention's, in the same exam.

    Returns:
        The share; None where it is not known.
    """
    return work.read / dense.read if work.read is not None and dense.read else _density(work, dense)


def timing_machine(found: Frontier) -> str | None:
    """Address of the machine whose times are shown: the one that timed most; None where nothing was timed."""
    machines = [time.race.machine for time in found.times.values()]
    return max(dict.fromkeys(machines), key=machines.count, default=None)


def at_chance_in(found: Frontier, phase: Phase) -> list[Sheet]:
    """Exams of a phase in which dense attention does no better than guessing, or less than the task demands: nothing
    can be concluded from them."""
    return [sheet for sheet in found.sheets.values() if sheet.exam.phase == phase and _fails(found, sheet)]


def _can_lose(found: Frontier, sheet: Sheet) -> bool:
    dense = found.grade(sheet.exam)
    return dense is not None and (not sheet.higher_is_better or float(np.mean(dense.scores)) > 0)


def _fails(found: Frontier, sheet: Sheet) -> bool:
    dense = found.grade(sheet.exam)
    if dense is None:
        return False
    short = sheet.least is not None and float(np.mean(dense.scores)) < sheet.least
    return short or at_chance(tuple(dense.scores), sheet.chance, sheet.higher_is_better)


def _dense(found: Frontier, exam: Exam) -> Grade:
    return found.grades[Cell(exam=exam, entry=DENSE).key]


def _result(found: Frontier, sheet: Sheet, grade: Grade, times: dict[tuple[int | None, str], Time]) -> ExamResult:
    dense = _dense(found, sheet.exam)
    timed = times.get((sheet.exam.tokens, grade.cell.entry.name))
    return ExamResult(
        sheet,
        grade,
        retained(grade.scores, dense.scores, sheet.higher_is_better),
        _density(grade.work, dense.work),
        grade.work.total / dense.work.total,
        grade.work.attention / dense.work.attention,
        None if timed is None else 1 / timed.speedup.median,
        None if timed is None else timed.speedup.q1 > 1,
        _fails(found, sheet),
        kept(grade.work, dense.work),
    )


def _density(work: InputWork, dense: InputWork) -> float | None:
    return work.pairs / dense.pairs if work.pairs is not None and dense.pairs else None


def _times(found: Frontier, phase: Phase) -> dict[tuple[int | None, str], Time]:
    """By length and method, of the machine that timed most."""
    machine = timing_machine(found)
    return {
        (time.race.exam.tokens, time.race.entry.name): time
        for time in found.times.values()
        if time.race.exam.phase == phase and time.race.machine == machine
    }


def _leads(found: Frontier, own: Sequence[ExamResult], grouped: dict[str, list[ExamResult]]) -> dict[str, Interval]:
    """Over each baseline of the same budget, in the exams that both took."""
    entry = own[0].grade.cell.entry
    if entry.budget is None:
        return {}
    leads = {}
    for family in baselines(entry.family):
        label = Entry(name=family, family=family, budget=entry.budget).label
        others = {result.sheet.exam: result.grade.scores for result in grouped.get(label, ())}
        over = [
            lead(mine.grade.scores, others[exam], _dense(found, exam).scores, mine.sheet.higher_is_better)
            for mine in own
            if (exam := mine.sheet.exam) in others
        ]
        if over:
            leads[family] = together(over)
    return leads
