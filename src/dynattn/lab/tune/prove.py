"""The proof on data that took no part in the search: the loss is below the limit, with 95% confidence.

Items are scored by the dense model and by the tuned one, and the differences are paired. The proof looks after each
text, goes on as long as there are texts and time, and stops where it has seen enough; the bound of
:mod:`dynattn.lab.proof` holds for that. Where it fails, the assignment is tightened, by what the search found and not
by what the proof saw, and tried again; the tries share the 5% that a claim may be wrong. Time is for all of them: a try
that another may follow ends where all texts that there are would prove nothing, were they like those that were seen.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from dynattn.lab.figures import BASELINE
from dynattn.lab.models import Pretrained
from dynattn.lab.proof import Proof, Verdict
from dynattn.lab.tasks import Outcome
from dynattn.lab.tune.ask import Ask, Asked
from dynattn.lab.tune.assignment import Assignment, methods
from dynattn.lab.tune.exams import Exam, bound_of, decided
from dynattn.lab.tune.parts import Exams
from dynattn.lab.tune.results import Lost, Try
from dynattn.lab.tune.search import set_assignment
from dynattn.lab.tune.store import Store
from dynattn.lab.tune.whole import applied, split

_TELLING = 20
"""Entries after which it is asked whether more of them could be a proof."""


def prove(
    number: int, assignment: Assignment, worst: Sequence[float | None], exams: Exams, pretrained: Pretrained,
    max_loss: float, store: Store, advance: Callable[[], None], in_time: Callable[[], bool], whole: str | None = None,
    data: int | None = None, ahead: Asked | None = None, last: bool = True,
) -> Try:  # fmt: skip
    """Try to prove that an assignment keeps the limits.

    The exams take turns, text by text, so that where the time ends all of them have got as far.

    Args:
        number: the number of the try, from 0.
        assignment: the assignment of methods.
        worst: for each exam, what an item is taken to lose at most, by the search's data.
        exams: the exams of this try.
        pretrained: the model.
        max_loss: relative.
        store: keeps the scores.
        advance: called after each step.
        in_time: whether another text may be begun.
        whole: the name of a method of the whole model besides, see :mod:`dynattn.lab.tune.whole`; None for none.
        data: number of the first try with these exams, whose dense scores hold; None for this one.
        ahead: scores entries before they are asked for.
        last: whether no other try may follow.

    Returns:
        What was lost. Where the first exam is refuted the others say what they had seen by then.
    """
    data = number if data is None else data
    takers = [
        _Taker(
            exam, exam.proof(max_loss, number + 1, most), (data, at), f"{whole} {sorted(methods(assignment).items())}"
        )
        for at, (exam, most) in enumerate(zip(exams, worst, strict=True))
    ]
    while True:
        taker = min((each for each in takers if each.goes_on), key=lambda each: each.share, default=None)
        failed = any(each.fails or (each.is_hopeless and not last) for each in takers if not each.silent)
        done = all(each.decided or each.silent for each in takers)
        if taker is None or failed or done or (taker.looks and not in_time()):
            break
        if ahead is not None and whole is None and not store.has(taker.own(taker.looks)):
            ahead.ask(_next(takers, assignment, ahead.at_once), advance)
        entry = taker.looks
        scorer = Scorer(taker.exam.portion(entry, entry + 1), pretrained, advance)
        others = [each for each in takers if each.exam.beside and each is not taker]
        dense = store.once(taker.dense(entry), scorer.dense)
        for other in others:
            _keep(store, other.dense(entry), scorer.along(other.exam.portion(entry, entry + 1)))
        own = store.once(taker.own(entry), lambda scorer=scorer: scorer.own(assignment, whole))
        for other in others:
            _keep(store, other.own(entry), scorer.along(other.exam.portion(entry, entry + 1)))
        taker.take(dense, own)
    heads = {module: list(heads) for module, heads in assignment.items()}
    lost = [taker.lost for taker in takers if taker.looks]
    return Try(heads=heads, lost=lost, **split(whole))


def dense_scores(data: int, exam: Exam, entry: int) -> str:
    """The name in the store of what the dense model scores in an entry of a proof.

    Args:
        data: number of the first try with these exams.
        exam: the exam.
        entry: the number of the entry.
    """
    return f"proof dense {data} {exam.task.name} {entry}"


class _Taker:
    """An exam on the way."""

    def __init__(self, exam: Exam, proof: Proof, which: tuple[int, int], tuned: str) -> None:
        self.exam, self.which, self._proof, self._tuned = exam, which, proof, tuned
        self._dense, self._own = np.array([]), np.array([])
        self.looks = 0
        self.verdict: Verdict | None = None

    def dense(self, entry: int) -> str:
        """The name in the store of the dense model's scores of an entry."""
        return dense_scores(self.which[0], self.exam, entry)

    def own(self, entry: int) -> str:
        """The name of the tuned model's."""
        return f"proof {self.which[0]} {self.exam.task.name} {entry} {self._tuned}"

    @property
    def goes_on(self) -> bool:
        """Whether there is more to see."""
        return self.looks < self.exam.entries and self.decided is None

    @property
    def decided(self) -> bool | None:
        """Whether the limit is kept for sure, by as many items as that takes; None where further ones may tell."""
        if self.verdict is None:
            return None
        return decided(self.verdict, self.exam.lost(self._own, self._dense), self._proof.worst, self.exam.fewest)

    @property
    def fails(self) -> bool:
        """Whether the limit cannot be kept any more."""
        return self.decided is False

    @property
    def is_hopeless(self) -> bool:
        """Whether all items that there are, were they like those that were seen, would not be a proof either."""
        if self.decided is not None or self.looks < _TELLING:
            return False
        every = len(self._dense) * self.exam.entries // self.looks
        return self._proof.foresee(self._dense, self._own, every).state != "proved"

    @property
    def silent(self) -> bool:
        """Whether the dense model itself only guesses, so that nothing can be told."""
        return self.exam.second and self.looks > 0 and self.exam.says_nothing(self._dense)

    @property
    def share(self) -> float:
        """Of its entries that were seen."""
        return self.looks / self.exam.entries

    def take(self, dense: Sequence[float], own: Sequence[float]) -> None:
        """The scores of an entry."""
        self._dense, self._own = np.append(self._dense, dense), np.append(self._own, own)
        self.looks += 1
        self.verdict = self._proof.look(self._dense, self._own)

    @property
    def lost(self) -> Lost:
        """What was lost so far."""
        exam, verdict = self.exam, self.verdict or self._proof.look(self._dense, self._own)
        return Lost(
            task=exam.task.name, metric=exam.task.metric, data=exam.data.summary, items=len(self._dense),
            dense=exam.shown(self._dense), tuned=exam.shown(self._own), loss=verdict.loss,
            bound=bound_of(verdict, exam.lost(self._own, self._dense), self._proof.worst, exam.fewest),
            limit=self._proof.max_loss,
            level=verdict.level, looks=self.looks, worst=self._proof.worst, proved=self.decided is True,
            silent=self.silent,
        )  # fmt: skip


def _keep(store: Store, name: str, scores: list[float] | None) -> None:
    """Write what came along with other scores, so that it is not sought again."""
    if scores is not None:
        store.once(name, lambda: scores)


def _next(takers: Sequence[_Taker], assignment: Assignment, many: int) -> list[Ask]:
    """So many of the entries that come next."""
    taker = min((each for each in takers if each.goes_on), key=lambda each: each.share)
    heads = {module: tuple(names) for module, names in assignment.items()}
    part, exam = taker.which
    entries = range(taker.looks, min(taker.looks + max(1, many), taker.exam.entries))
    return [
        ask
        for entry in entries
        for ask in (
            Ask(taker.dense(entry), "dense", part=part, exam=exam, entry=entry),
            Ask(taker.own(entry), "own", assignment=heads, part=part, exam=exam, entry=entry),
        )
    ]


class Scorer:
    """Scores an entry with the dense model and with the tuned one."""

    def __init__(self, exam: Exam, pretrained: Pretrained, advance: Callable[[], None]) -> None:
        self._exam, self._pretrained, self._advance = exam, pretrained, advance
        self._outcome: Outcome | None = None
        self._last: Outcome | None = None

    def dense(self) -> list[float]:
        """The dense model's scores."""
        self._outcome = self._last = self._exam.outcome(self._pretrained, BASELINE, self._advance)
        return self._exam.scores(self._outcome, self._outcome).tolist()

    def own(self, assignment: Assignment, whole: str | None) -> list[float]:
        """The tuned model's."""
        if self._outcome is None and self._exam.by_agreement:
            self.dense()
        implementation = set_assignment(self._pretrained, assignment)
        with applied(self._pretrained, whole):
            own = self._last = self._exam.outcome(self._pretrained, implementation, self._advance)
        return self._exam.scores(own, self._outcome or own).tolist()

    def along(self, other: Exam) -> list[float] | None:
        """What forwards since the last call told of another exam of the same entry; None where they told nothing.

        Args:
            other: with that entry alone.
        """
        found, self._last = other.along(self._last), None
        return None if found is None else other.scores(found, found).tolist()
