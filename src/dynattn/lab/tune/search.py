"""How far along the path the loss stays within the limit, by measuring a few whole assignments on the search's data.

The predicted harm orders assignments; what they cost is measured. A loss grows about as a power of the harm, so each
measurement tells where the next one should be, and what is taken in the end has itself been measured.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from dynattn.integrations.transformers import assign
from dynattn.lab.figures import BASELINE
from dynattn.lab.models import Pretrained
from dynattn.lab.tasks import Outcome
from dynattn.lab.tune.assignment import Assignment, methods
from dynattn.lab.tune.choices import Choices, Point
from dynattn.lab.tune.exams import Exam
from dynattn.lab.tune.parts import Exams
from dynattn.lab.tune.shorten import shortening
from dynattn.lab.tune.store import Store

ASSIGNED = "dynattn:assigned"
_FIRST = 0.25  # of all that can be saved: where the search begins
_STEPS = (1 / 100, 30.0)  # by which factor the harm may change between two measurements
_AIM = 0.8  # of the limit: the bound on other data of the same kind will lie a little lower or higher
_FAR = 1e3  # a loss that is as good as infinite

GOOD = 0.95
"""The share of a limit that the proof's bound may take on the data of the search."""


@dataclass(frozen=True)
class Measured:
    """A point with what it lost.

    Attributes:
        point: the assignment.
        losses: for each exam the mean relative loss.
        worst: for each exam, see :meth:`dynattn.lab.tune.exams.Exam.worst`.
        used: the largest share of a limit that the proof's bound would take.
        pruning: the name of the method that shortens the sequence besides; None for none.
    """

    point: Point
    losses: tuple[float, ...]
    worst: tuple[float | None, ...]
    used: float
    pruning: str | None = None

    @property
    def keeps(self) -> bool:
        """Whether the proof would find that the limits are kept, were its items like these."""
        return self.used <= GOOD


def set_assignment(pretrained: Pretrained, assignment: Assignment) -> str:
    """Have the model attend by an assignment; returns Transformers' name of it."""
    assign(pretrained.model, methods(assignment))
    return ASSIGNED


def dense(exams: Exams, pretrained: Pretrained, advance: Callable[[], None]) -> list[Outcome]:
    """The outcomes of PyTorch's dense attention."""
    return [exam.outcome(pretrained, BASELINE, advance) for exam in exams]


class Search:
    """Measures points of a path.

    Args:
        choices: the choices, with the path.
        exams: the exams of the search.
        pretrained: the model.
        max_loss: relative.
        planned: items that the proof will look at, of each exam.
        store: keeps what was measured.
        outcomes: the dense model's, one an exam.
    """

    def __init__(
        self, choices: Choices, exams: Exams, pretrained: Pretrained, max_loss: float, planned: Sequence[int],
        store: Store, outcomes: Sequence[Outcome],
    ) -> None:  # fmt: skip
        self.choices, self._exams, self._pretrained = choices, exams, pretrained
        self._max_loss, self._planned, self._store, self._dense = max_loss, planned, store, outcomes
        self.measured: list[Measured] = []

    def run(self, points: int, advance: Callable[[], None], in_time: Callable[[], bool]) -> Measured | None:
        """Measure so many points, while there is time; the fastest of those that keep the limits, None where none
        does."""
        wanted = self._first()
        for _ in range(points):
            aim = self.choices.within(wanted)
            if any(each.point.moves == aim.moves for each in self.measured) or (self.measured and not in_time()):
                break
            self.measure(aim, advance)
            wanted = self._next()
        return self.best()

    def best(self) -> Measured | None:
        """The fastest measured point that keeps the limits."""
        good = [each for each in self.measured if each.keeps and each.point.saved > 0]
        return max(good, key=lambda each: each.point.saved, default=None)

    def measure(self, point: Point, advance: Callable[[], None]) -> Measured:
        """What an assignment loses on the search's data."""
        self.measured.append(self.lost(point, None, advance))
        return self.measured[-1]

    def lost(self, point: Point, pruning: str | None, advance: Callable[[], None]) -> Measured:
        """What an assignment loses together with a method that shortens the sequence."""
        found = self._store.once(
            f"measured {pruning} {sorted(methods(point.assignment).items())}",
            lambda: self._lost(point, pruning, advance),
        )
        losses, worst, used = [], [], 0.0
        for exam, own, dense, items in zip(self._exams, found, self._dense, self._planned, strict=True):
            base, own = exam.scores(dense, dense), np.array(own)
            losses.append(exam.loss(own, base))
            worst.append(exam.worst(own, base, self._max_loss))
            if not (exam.second and exam.says_nothing(base)):
                used = max(used, self._used(exam, own, base, items, worst[-1]))
        return Measured(point, tuple(losses), tuple(worst), used, pruning)

    def harm_at(self, loss: float) -> float | None:
        """The harm at which the first exam would lose so much, by what was measured; None where that says nothing."""
        known = [
            (each.point.harm, each.losses[0]) for each in self.measured if each.losses[0] > 0 and each.point.harm > 0
        ]
        if not known:
            return None
        power, offset = _line(known)
        return math.exp((math.log(loss) - offset) / power)

    def _first(self) -> float:
        total = self.choices.most.saved
        saved = np.cumsum([move.saved for move in self.choices.moves])
        return float(sum(m.harm for m in self.choices.moves[: int(np.searchsorted(saved, _FIRST * total)) + 1]))

    def _next(self) -> float:
        """Where the limits would be just kept, between the last good and the first bad point."""
        last, least = self.measured[-1], self._least
        over = [(each.point.harm, each.used - least) for each in self.measured if each.used > least]
        known = [each for each in over if each[0] > 0]
        power = _line(known)[0] if len(known) > 1 else 1.0
        factor = ((_AIM - least) / (last.used - least)) ** (1 / power) if last.used > least else math.inf
        wanted = last.point.harm * min(max(factor, _STEPS[0]), _STEPS[1])
        good = max((each.point.harm for each in self.measured if each.used <= GOOD), default=0.0)
        bad = min((each.point.harm for each in self.measured if each.used > GOOD), default=math.inf)
        if not good < wanted < bad:
            wanted = math.sqrt(good * bad) if good > 0 and bad < math.inf else wanted
        return wanted

    @cached_property
    def _least(self) -> float:
        """What the bound takes where nothing is lost at all, for want of items; below what is aimed at."""
        found = [
            self._used(exam, base, base, items, exam.worst(base, base, self._max_loss))
            for exam, items, base in zip(
                self._exams,
                self._planned,
                (e.scores(d, d) for e, d in zip(self._exams, self._dense, strict=True)),
                strict=True,
            )
        ]
        return min(max(found), _AIM / 2)

    def _used(self, exam: Exam, own: np.ndarray, dense: np.ndarray, items: int, worst: float | None) -> float:
        """The share of the limit that the proof's bound would take, were its items like these ones over and over."""
        proof = exam.proof(self._max_loss, 1, worst)
        return min(proof.foresee(dense, own, items).high, _FAR) / proof.max_loss

    def _lost(self, point: Point, pruning: str | None, advance: Callable[[], None]) -> Any:
        implementation = set_assignment(self._pretrained, point.assignment)
        with shortening(self._pretrained, pruning):
            return [
                exam.scores(exam.outcome(self._pretrained, implementation, advance), dense).tolist()
                for exam, dense in zip(self._exams, self._dense, strict=True)
            ]


def _line(known: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Slope and offset of log(y) over log(x): a power between 1/2 and 2 through the mean of the points."""
    x, y = np.log([each[0] for each in known]), np.log([each[1] for each in known])
    spread = float(((x - x.mean()) ** 2).sum())
    power = float(((x - x.mean()) * (y - y.mean())).sum() / spread) if spread > 0 else 1.0
    power = min(max(power, 0.5), 2.0)
    return power, float(y.mean() - power * x.mean())
