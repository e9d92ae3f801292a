"""An alarm: a method that beats dense attention beyond chance says that dense attention was measured wrongly.

No method knows more than dense attention, so that a large gain is a sign of a wrong baseline: of another model, other
inputs, a mask that is not applied. All cells of a record are looked at, those in which dense attention does no better
than guessing among them, since a wrong baseline may look like that. Each has the chance of Student's t for its gains,
paired by item (:func:`dynattn.lab.statistics.luck`); the alarm is given where it is at most 1% over the number of cells
(Bonferroni), so that in 99 of 100 right records, whatever their size, none is given.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from dynattn.lab.frontier.cell import DENSE, Cell
from dynattn.lab.frontier.results import Frontier, Grade
from dynattn.lab.statistics import luck

ALARM = 0.01
"""How likely an alarm is in a record of right measurements."""


class Beating(NamedTuple):
    """A cell that beats dense attention.

    Attributes:
        cell: the method and the exam.
        gain: how much better it is on average, in the metric of the exam.
        chance: how likely that is by chance, for this cell alone.
        cells: how many were looked at.
    """

    cell: Cell
    gain: float
    chance: float
    cells: int

    def __str__(self) -> str:
        exam = self.cell.exam
        return (
            f"{self.cell.entry.name} beats dense attention in {exam.title}, {exam.phase}, by {self.gain:.4f}, which "
            f"chance gives with {self.chance:.1g} (of {self.cells} cells, each may have {ALARM / self.cells:.1g}): the "
            "baseline is likely to be wrong"
        )


def beating(found: Frontier) -> list[Beating]:
    """The cells that beat dense attention beyond chance, in all that a record holds.

    Args:
        found: the record.
    """
    cells = [
        (grade, dense)
        for grade in found.grades.values()
        if grade.cell.entry != DENSE and (dense := found.grade(grade.cell.exam)) is not None
    ]
    wrong = []
    for grade, dense in cells:
        sign = 1 if found.sheets[grade.cell.exam.key].higher_is_better else -1
        gains = sign * np.subtract(grade.scores, dense.scores)
        chance = luck(gains, _step(grade, dense))
        if chance <= ALARM / len(cells):
            wrong.append(Beating(grade.cell, float(np.mean(gains)), chance, len(cells)))
    return wrong


def _step(*grades: Grade) -> float:
    """The least difference between scores that differ by more than rounding; 0 where there is one score."""
    values = np.unique(np.concatenate([grade.scores for grade in grades]).round(9))
    return float(np.diff(values).min()) if len(values) > 1 else 0.0
