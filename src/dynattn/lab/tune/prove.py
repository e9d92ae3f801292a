"""The proof on data that took no part in the search: the loss is below the limit, with 95% confidence.

Items are scored by the dense model and by the tuned one, and the differences are paired. The proof looks after each
text and stops where it has seen enough, or where the time is over; the bound of :mod:`dynattn.lab.proof` holds for
that. Where it fails, the assignment is tightened and tried again on data that no try has seen, and the tries share the
5% that a claim may be wrong.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from dynattn.lab.figures import BASELINE
from dynattn.lab.models import Pretrained
from dynattn.lab.tune.assignment import Assignment, methods
from dynattn.lab.tune.exams import Exam
from dynattn.lab.tune.parts import Exams
from dynattn.lab.tune.results import Lost, Try
from dynattn.lab.tune.search import set_assignment
from dynattn.lab.tune.shorten import shortening
from dynattn.lab.tune.store import Store


def prove(
    number: int, assignment: Assignment, worst: Sequence[float | None], exams: Exams, pretrained: Pretrained,
    max_loss: float, store: Store, advance: Callable[[], None], in_time: Callable[[], bool], pruning: str | None = None,
) -> Try:  # fmt: skip
    """Try to prove that an assignment keeps the limits.

    Args:
        number: the number of the try, from 0.
        assignment: the assignment of methods.
        worst: for each exam, what an item is taken to lose at most, by the search's data.
        exams: the exams of this try alone.
        pretrained: the model.
        max_loss: relative.
        store: keeps the scores.
        advance: called after each step.
        in_time: whether another text may be begun.
        pruning: the name of the method that shortens the sequence besides; None for none.

    Returns:
        What was lost. Exams after one that fails are left out.
    """
    lost: list[Lost] = []
    for exam, most in zip(exams, worst, strict=True):
        lost.append(_prove(number, assignment, most, exam, pretrained, max_loss, store, advance, in_time, pruning))
        if not lost[-1].holds:
            break
    heads = {module: list(heads) for module, heads in assignment.items()}
    return Try(heads=heads, pruning=pruning, lost=lost)


def _prove(
    number: int, assignment: Assignment, worst: float | None, exam: Exam, pretrained: Pretrained, max_loss: float,
    store: Store, advance: Callable[[], None], in_time: Callable[[], bool], pruning: str | None,
) -> Lost:  # fmt: skip
    proof = exam.proof(max_loss, number + 1, worst)
    dense, own, entry = np.array([]), np.array([]), 0
    for entry in range(exam.entries):
        part = exam.portion(entry, entry + 1)
        name = f"proof {number} {exam.task.name} {entry} {pruning} {sorted(methods(assignment).items())}"
        found = store.once(name, lambda part=part: _scores(assignment, pruning, part, pretrained, advance))
        dense, own = np.append(dense, found[0]), np.append(own, found[1])
        if proof.look(dense, own).state != "undecided" or not in_time():
            break
    verdict = proof.look(dense, own)
    return Lost(
        task=exam.task.name, metric=exam.task.metric, data=exam.data.summary, items=len(dense), dense=exam.shown(dense),
        tuned=exam.shown(own), loss=verdict.loss, bound=verdict.high if math.isfinite(verdict.high) else None,
        limit=proof.max_loss, level=verdict.level, looks=entry + 1, worst=worst, proved=verdict.state == "proved",
        silent=exam.second and exam.says_nothing(dense),
    )  # fmt: skip


def _scores(
    assignment: Assignment, pruning: str | None, exam: Exam, pretrained: Pretrained, advance: Callable[[], None]
) -> Any:
    """The dense model's scores and the tuned one's, as lists."""
    dense = exam.outcome(pretrained, BASELINE, advance)
    implementation = set_assignment(pretrained, assignment)
    with shortening(pretrained, pruning):
        own = exam.outcome(pretrained, implementation, advance)
    return [exam.scores(dense, dense).tolist(), exam.scores(own, dense).tolist()]
