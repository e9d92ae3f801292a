"""The proof on data that took no part in the search: the loss is below the limit, with 95% confidence.

Items are scored by the dense model and by the tuned one, and the differences are paired. The proof looks at its data a
planned number of times and stops where it has seen enough; the bound holds for that. Where it fails, the assignment is
tightened and tried again on data that no try has seen, and the tries share the 5% that a claim may be wrong.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from dynattn.lab.figures import BASELINE
from dynattn.lab.models import Pretrained
from dynattn.lab.tune.assignment import Assignment, methods
from dynattn.lab.tune.exams import Exam, baseline
from dynattn.lab.tune.parts import Exams
from dynattn.lab.tune.results import Lost, Try
from dynattn.lab.tune.search import limit_of, set_assignment
from dynattn.lab.tune.store import Store

ERROR = 0.05
"""The chance that any claim of a run is wrong, at most."""

_SHARES = (0.8, 0.2)  # of it, for the tries: the first one is the likeliest to hold


def error_of(number: int) -> float:
    """The chance of a wrong claim that a try may take, counted from 0."""
    return ERROR * _SHARES[number]


def prove(
    number: int, assignment: Assignment, exams: Exams, pretrained: Pretrained, max_loss: float, store: Store,
    advance: Callable[[], None],
) -> Try:  # fmt: skip
    """Try to prove that an assignment keeps the limits.

    Args:
        number: of the try, from 0.
        assignment: of methods.
        exams: of this try alone.
        pretrained: the model.
        max_loss: relative.
        store: keeps the scores.
        advance: called after each step.

    Returns:
        What was lost. Exams after one that fails are left out.
    """
    lost: list[Lost] = []
    for exam in exams:
        lost.append(_prove(number, assignment, exam, pretrained, limit_of(exam, max_loss), store, advance))
        if not lost[-1].holds:
            break
    return Try(heads={module: list(heads) for module, heads in assignment.items()}, lost=lost)


def _prove(
    number: int, assignment: Assignment, exam: Exam, pretrained: Pretrained, limit: float, store: Store,
    advance: Callable[[], None],
) -> Lost:  # fmt: skip
    error, dense, own = error_of(number), np.array([]), np.array([])
    stops = looks(exam)
    bound, taken = None, 0
    for taken, stop in enumerate(stops, start=1):
        part = exam.portion(len(dense), stop)
        name = f"proof {number} {exam.task.name} {len(dense)} {stop} {sorted(methods(assignment).items())}"
        found = store.once(name, lambda part=part: _scores(assignment, part, pretrained, advance))
        dense, own = np.append(dense, found[0]), np.append(own, found[1])
        bound = upper(exam.losses(own, dense), error / len(stops))
        if bound is not None and exam.relative(bound, dense) <= limit:
            break
    lost = exam.losses(own, dense)
    return Lost(
        task=exam.task.name, metric=exam.task.metric, data=exam.data.summary, items=len(dense), dense=dense.mean(),
        tuned=own.mean(), loss=exam.relative(float(lost.mean()), dense),
        bound=None if bound is None else exam.relative(bound, dense), limit=limit, level=1 - error, looks=taken,
        silent=exam.second and exam.says_nothing(dense),
    )  # fmt: skip


def looks(exam: Exam) -> list[int]:
    """After how many items the proof looks."""
    if not exam.one_by_one or exam.items < 8:
        return [exam.items]
    return [exam.items // 2, exam.items]


def upper(losses: np.ndarray, error: float) -> float | None:
    """The upper confidence bound of a mean, by Student's t; None for fewer than two items.

    Args:
        losses: (items,).
        error: the chance that the mean is above it.
    """
    from scipy.stats import t

    if len(losses) < 2:
        return None
    spread = float(losses.std(ddof=1)) / len(losses) ** 0.5
    return float(losses.mean() + t.ppf(1 - error, len(losses) - 1) * spread)


def margin(exam: Exam) -> float:
    """How many standard deviations of one item's loss the first try's bound lies above the mean, at its last look."""
    from scipy.stats import t

    stops = looks(exam)
    return float(t.ppf(1 - error_of(0) / len(stops), max(1, stops[-1] - 1))) / stops[-1] ** 0.5


def _scores(assignment: Assignment, exam: Exam, pretrained: Pretrained, advance: Callable[[], None]) -> Any:
    """The dense model's scores and the tuned one's, as lists."""
    dense = exam.outcome(pretrained, BASELINE, advance)
    own = exam.outcome(pretrained, set_assignment(pretrained, assignment), advance)
    return [baseline(exam, dense).tolist(), exam.scores(own, dense).tolist()]
