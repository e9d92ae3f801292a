"""The fastest assignment whose loss stays within the limit, by measuring a few whole ones on the search's data.

There are several paths from dense attention on: the knapsack's, and one through each method for all heads that none
beats in both harm and time. On a path the predicted harm orders assignments; what they cost is measured. A loss grows
about as a power of the harm, a power and a factor for each path, so each measurement tells where the next one should
be, and what is taken in the end has itself been measured.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from dynattn.integrations.transformers import assign
from dynattn.lab.figures import BASELINE
from dynattn.lab.models import Pretrained
from dynattn.lab.tasks import Outcome
from dynattn.lab.tune.assignment import Assignment, methods
from dynattn.lab.tune.choices import Choices, Path, Point
from dynattn.lab.tune.exams import Exam
from dynattn.lab.tune.parts import Exams
from dynattn.lab.tune.store import Store
from dynattn.lab.tune.whole import applied

ASSIGNED = "dynattn:assigned"
_REFINED = 3  # points that are kept for what was found to be best
_FIRST = 0.25  # of all that can be saved: where the search begins
_STEPS = (1 / 100, 30.0)  # by which factor the harm may change between two measurements
_AIM = 0.8  # of the limit: the bound on other data of the same kind will lie a little lower or higher
_FAR = 1e3  # a loss that is as good as infinite
_HOPELESS = 2.0  # times the limit: what loses more needs no second exam

GOOD = 0.95
"""The share of a limit that the proof's bound may take on the data of the search."""


@dataclass(frozen=True)
class Measured:
    """A point with what it lost.

    Attributes:
        point: the assignment.
        losses: for each exam the mean relative loss; a hopeless one is the last.
        worst: for each exam, see :meth:`dynattn.lab.tune.exams.Exam.worst`.
        used: the largest share of a limit that the proof's bound would take.
        whole: the name of a method of the whole model besides, see :mod:`dynattn.lab.tune.whole`; None for none.
    """

    point: Point
    losses: tuple[float, ...]
    worst: tuple[float | None, ...]
    used: float
    whole: str | None = None

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
    return list(outcomes(exams, pretrained, BASELINE, advance))


def outcomes(
    exams: Exams, pretrained: Pretrained, implementation: str, advance: Callable[[], None]
) -> Iterator[Outcome]:
    """What the model makes of exams, one after the other; what came along with the first is taken from there.

    Args:
        exams: the exams.
        pretrained: the model.
        implementation: the attention.
        advance: called after each step.
    """
    first: Outcome | None = None
    for exam in exams:
        found = exam.along(first)
        if found is None:
            found = exam.outcome(pretrained, implementation, advance)
        first = found if first is None else first
        yield found


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

    Attributes:
        measured: the points, in the order in which they were measured.
        looks: how many assignments were measured, with methods of the whole model and without.
    """

    def __init__(
        self, choices: Choices, exams: Exams, pretrained: Pretrained, max_loss: float, planned: Sequence[int],
        store: Store, outcomes: Sequence[Outcome],
    ) -> None:  # fmt: skip
        self.choices, self._exams, self._pretrained = choices, exams, pretrained
        self._max_loss, self._planned, self._store, self._dense = max_loss, planned, store, outcomes
        self.measured: list[Measured] = []
        self.looks = 0
        self._paths: dict[str | None, Path] = {None: choices.path}

    def run(self, points: int, advance: Callable[[], None], in_time: Callable[[], bool]) -> Measured | None:
        """Measure so many points, while there is time; the fastest of those that keep the limits, None where none
        does.

        First a point of the knapsack's path, and of each family the methods for all heads, the least harmful first,
        as long as they keep the limits. Then, each time, the path on which the fastest point is foretold that keeps
        them.
        """
        for point in self._begin():
            if len(self.measured) >= max(1, points - _REFINED) or (self.measured and not in_time()):
                break
            if not self._seen(point):
                self.measure(point, advance)
        while len(self.measured) < points and in_time():
            point = self._most_promising()
            if point is None:
                break
            self.measure(point, advance)
        return self.best()

    def best(self) -> Measured | None:
        """The fastest measured point that keeps the limits."""
        good = [each for each in self.measured if each.keeps and each.point.saved > 0]
        return max(good, key=lambda each: each.point.saved, default=None)

    def measure(self, point: Point, advance: Callable[[], None]) -> Measured:
        """What an assignment loses on the search's data."""
        self.measured.append(self.lost(point, None, advance))
        return self.measured[-1]

    def lost(self, point: Point, whole: str | None, advance: Callable[[], None]) -> Measured:
        """What an assignment loses together with a method of the whole model."""
        self.looks += 1
        found = self._store.once(
            key(point.assignment, whole),
            lambda: scores(
                self._pretrained, point.assignment, whole, self._exams, self._dense, self._max_loss, advance
            ),
        )
        losses, worst, used = [], [], 0.0
        for exam, own, dense, items in zip(self._exams, found, self._dense, self._planned, strict=False):
            base, own = exam.scores(dense, dense), np.array(own)
            losses.append(exam.loss(own, base))
            worst.append(exam.worst(own, base, self._max_loss))
            if not (exam.second and exam.says_nothing(base)):
                used = max(used, self._used(exam, own, base, items, worst[-1]))
        return Measured(point, tuple(losses), tuple(worst), used, whole)

    def harm_at(self, loss: float) -> float | None:
        """The harm at which the first exam would lose so much, by what was measured; None where that says nothing."""
        known = [
            (each.point.harm, each.losses[0]) for each in self.measured if each.losses[0] > 0 and each.point.harm > 0
        ]
        if not known:
            return None
        power, offset = _line(known)
        return math.exp((math.log(loss) - offset) / power)

    def foreseen(self, points: int) -> list[Point]:
        """Points that will be measured first, whatever the others lose."""
        return list(self._first())[: max(1, points - _REFINED)]

    def _first(self) -> Iterator[Point]:
        choices = self.choices
        saved = np.cumsum([move.saved for move in choices.moves])
        yield choices.point(int(np.searchsorted(saved, _FIRST * choices.most.saved)) + 1)
        for family in choices.singles:
            path = choices.through(family[0])
            if not _alike(path, choices.path):
                yield choices.point(path.single, path)

    def _begin(self) -> Iterator[Point]:
        """What is measured first."""
        choices = self.choices
        yield next(self._first())
        for family in choices.singles:
            for name in family:
                path = choices.through(name)
                if _alike(path, choices.path):
                    continue
                self._paths[name] = path
                point = choices.point(path.single, path)
                best = self.best()
                if best is None or point.saved > best.point.saved:
                    yield point
                if self.measured and not self.measured[-1].keeps:
                    break

    def _seen(self, point: Point) -> bool:
        return any(each.point.assignment == point.assignment for each in self.measured)

    def _most_promising(self) -> Point | None:
        """Of all paths that were looked at, the fastest point that is foretold to keep the limits; None where all were
        measured, or none is faster than what was found."""
        best = self.best()
        found = []
        for name in dict.fromkeys(each.point.through for each in self.measured):
            path = self._paths.setdefault(name, self.choices.path)
            point = self.choices.within(
                self._wanted([each for each in self.measured if each.point.through == name]), path
            )
            if not self._seen(point) and point.saved > (best.point.saved if best else 0.0):
                found.append(point)
        return max(found, key=lambda point: point.saved, default=None)

    def _wanted(self, measured: Sequence[Measured]) -> float:
        """The harm on a path at which the limits would be just kept, between the last good and the first bad point."""
        last, least = measured[-1], self._least
        over = [(each.point.harm, each.used - least) for each in measured if each.used > least]
        known = [each for each in over if each[0] > 0]
        power = _line(known)[0] if len(known) > 1 else 1.0
        factor = ((_AIM - least) / (last.used - least)) ** (1 / power) if last.used > least else math.inf
        wanted = last.point.harm * min(max(factor, _STEPS[0]), _STEPS[1])
        good = max((each.point.harm for each in measured if each.used <= GOOD), default=0.0)
        bad = min((each.point.harm for each in measured if each.used > GOOD), default=math.inf)
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


def scores(
    pretrained: Pretrained, assignment: Assignment, whole: str | None, exams: Exams, dense: Sequence[Outcome],
    max_loss: float, advance: Callable[[], None],
) -> list[list[float]]:  # fmt: skip
    """The scores in each exam; the second is left out where far more was lost in the first than is allowed.

    Args:
        pretrained: the model; it is left with the assignment.
        assignment: the assignment of methods.
        whole: the name of a method of the whole model besides, see :mod:`dynattn.lab.tune.whole`; None for none.
        exams: the exams of the search.
        dense: the dense model's outcomes.
        max_loss: relative.
        advance: called after each step.
    """
    implementation, found = set_assignment(pretrained, assignment), []
    with applied(pretrained, whole):
        outcome = outcomes(exams, pretrained, implementation, advance)
        for exam, its in zip(exams, dense, strict=True):
            own = exam.scores(next(outcome), its)
            found.append(own.tolist())
            if exam.loss(own, exam.scores(its, its)) > _HOPELESS * exam.limit(max_loss):
                break
    return found


def key(assignment: Assignment, whole: str | None) -> str:
    """The name in the store of what an assignment scores."""
    return f"measured {whole} {sorted(methods(assignment).items())}"


def _alike(path: Path, other: Path) -> bool:
    """Whether two paths go the same way."""
    return path.moves == other.moves and path.options == other.options


def _line(known: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Slope and offset of log(y) over log(x): a power between 1/2 and 2 through the mean of the points."""
    x, y = np.log([each[0] for each in known]), np.log([each[1] for each in known])
    spread = float(((x - x.mean()) ** 2).sum())
    power = float(((x - x.mean()) * (y - y.mean())).sum() / spread) if spread > 0 else 1.0
    power = min(max(power, 0.5), 2.0)
    return power, float(y.mean() - power * x.mean())
