"""The best single method for all heads, on the texts of the proof, beside the assignment that was proved there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from dynattn.lab.figures import BASELINE
from dynattn.lab.models import Pretrained
from dynattn.lab.tune.assignment import methods
from dynattn.lab.tune.choices import Choices, Point
from dynattn.lab.tune.exams import Exam, bound_of, decided
from dynattn.lab.tune.prove import dense_scores
from dynattn.lab.tune.results import Lost, Rival
from dynattn.lab.tune.search import Measured, set_assignment
from dynattn.lab.tune.store import Store


def chosen(choices: Choices, tuned: Point, measured: Sequence[Measured] = ()) -> tuple[str, Point] | None:
    """The fastest method for all heads that kept the limits in the search; where none did, the one that harms least
    of those that are foretold to be as fast, else the fastest of all.

    Args:
        choices: the choices, with the candidates.
        tuned: the assignment to be held against; a method that it is itself is left out.
        measured: what the search measured.
    """
    every = [
        (name, point) for name in choices.names if (point := choices.everywhere(name)).assignment != tuned.assignment
    ]
    kept = [each.point.assignment for each in measured if each.keeps]
    good = [each for each in every if each[1].assignment in kept]
    if good:
        return max(good, key=lambda each: each[1].saved)
    as_fast = [each for each in every if each[1].saved >= tuned.saved]
    if as_fast:
        return min(as_fast, key=lambda each: each[1].harm)
    return max(every, key=lambda each: each[1].saved, default=None)


def measure(
    name: str, point: Point, speedup: float, lost: Lost, exam: Exam, data: int, pretrained: Pretrained, store: Store,
    advance: Callable[[], None], max_loss: float, attempt: int,
) -> Rival:  # fmt: skip
    """What one method for all heads loses where the tuned assignment was proved, and whether it would have been, too.

    Args:
        name: the name of the method.
        point: the assignment that it is.
        speedup: the speed-up of the whole model, measured.
        lost: what the tuned assignment lost.
        exam: the exam of the proof.
        data: number of the first try with this exam, under which the dense model's scores are kept.
        pretrained: the model; it is left with the method.
        store: keeps the scores.
        advance: called after each step.
        max_loss: relative.
        attempt: the try that proved the tuned assignment, from 1.
    """
    part = exam.portion(0, lost.looks)

    def find() -> Any:
        dense = part.outcome(pretrained, BASELINE, lambda: None) if part.by_agreement else None
        own = part.outcome(pretrained, set_assignment(pretrained, point.assignment), advance)
        return part.scores(own, dense or own).tolist()

    kept = (store.get(dense_scores(data, exam, entry)) for entry in range(lost.looks))
    dense = np.concatenate([np.array(each) for each in kept])
    key = f"rival {data} {exam.task.name} {lost.looks} {sorted(methods(point.assignment).items())}"
    own = np.array(store.once(key, find))
    proof = exam.proof(max_loss, attempt, lost.worst)
    verdict = proof.look(dense, own)
    return Rival(
        method=name, speedup=speedup, loss=part.loss(own, dense), tuned=lost.loss,
        bound=bound_of(verdict, exam.lost(own, dense), proof.worst, exam.fewest), limit=proof.max_loss,
        proved=decided(verdict, exam.lost(own, dense), proof.worst, exam.fewest) is True,
    )  # fmt: skip
