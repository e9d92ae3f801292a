"""The run: where time goes, what each head can spare, the fastest assignment, the proof, the race."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Literal

from dynattn.lab.machine import machine
from dynattn.lab.progress import Stage
from dynattn.lab.tasks import Outcome
from dynattn.lab.timing import LEAST_ROUNDS
from dynattn.lab.tune import chosen, foretold, rival, sensitivity, shorten, shortest
from dynattn.lab.tune.ask import Ask, Asked
from dynattn.lab.tune.assignment import methods
from dynattn.lab.tune.begin import Begun
from dynattn.lab.tune.candidates import candidates
from dynattn.lab.tune.choices import Choices, Point, worth
from dynattn.lab.tune.chosen import Chosen
from dynattn.lab.tune.clock import Clock
from dynattn.lab.tune.exams import Exam
from dynattn.lab.tune.layers import clocked, places
from dynattn.lab.tune.linears import prefill
from dynattn.lab.tune.parts import Exams
from dynattn.lab.tune.plan import LEAST
from dynattn.lab.tune.prove import prove
from dynattn.lab.tune.race import race
from dynattn.lab.tune.results import Raced, Rival, Time, Try, Tuning, WholeModel
from dynattn.lab.tune.search import Measured, Search, dense, key
from dynattn.lab.tune.settings import Settings
from dynattn.lab.tune.store import Store
from dynattn.lab.tune.times import Costs
from dynattn.lab.tune.times import clock as clock_candidates
from dynattn.lab.tune.whole import split

LEAST_GAIN = 1.03
"""A speed-up of the whole model below which no search is begun: less than machines differ from hour to hour."""

_TIGHTER = 0.4  # of the harm, after a proof that failed
_PAIR = 2  # forwards of an item: dense and tuned
_MOST_ROUNDS = 15  # of the race
_OF_THE_REST = 0.8  # of the time that is left after all else, for the race


class Run:
    """One run, stage by stage; each result is kept in the store.

    Args:
        settings: what was asked for.
        begun: the model and the data.
        store: the store of results.
        stage: shows progress.
        clock: tells the time that is left.
        ahead: measures in other processes what does not depend on each other.
    """

    def __init__(
        self, settings: Settings, begun: Begun, store: Store, stage: Stage, clock: Clock, ahead: Asked | None = None
    ) -> None:
        self._ahead = ahead
        self._settings, self._begun, self._store, self._stage, self._clock = settings, begun, store, stage, clock
        self._began = time.perf_counter()
        self._pretrained = begun.pretrained
        self._choices: Choices | None = None
        self._search: Search | None = None
        self._costs: Costs | None = None
        self._tries: list[Try] = []
        self._rival: Rival | None = None
        self._families: tuple[tuple[str, ...], ...] = ()  # of methods of the whole model
        self._whole_model: list[WholeModel] = []
        self._before = chosen.kept(store)

    def tune(self) -> Tuning:
        """All of it."""
        spent = self._time()
        if self._begun.few is not None:
            if spent.bound >= LEAST_GAIN:
                self._choices = self._chosen(spent)
            return self._exact(spent, self._begun.few)
        shorter = shorten.families(self._pretrained.model, self._begun.length)
        beside = bool(shorter or self._begun.linears)
        if spent.bound < LEAST_GAIN and not beside:
            return self._dense(spent, f"attention takes {spent.share:.1%} of a forward: no method could gain more than "
                               f"{spent.bound:.2f} times")  # fmt: skip
        outcomes = self._judged()
        choices = self._choices = self._chosen(spent)
        slow = foretold.speedup(spent, choices.most) < LEAST_GAIN
        if slow and not beside:
            return self._dense(spent, "no candidate's kernels are fast enough here, even where nothing limits the loss")
        self._families = (*shorter, *self._of_linears())
        best = self._best(spent, choices, outcomes, 0 if slow else self._begun.plan.points)
        if best is None or (best.whole is None and self._is_dense(best.point)):
            return self._exact(spent, "nothing that was measured and gains anything is foreseen to keep the limit")
        proved = self._proved(spent, choices, best)
        if proved is None:
            return self._exact(spent, self._unproved())
        return self._raced(spent, *proved)

    def _time(self) -> Time:
        advance = self._stage("where time goes", 1)
        inputs = self._inputs(self._begun.parts.search[0])

        def find() -> Any:
            seen = min((clocked(self._pretrained, inputs) for _ in range(2)), key=lambda each: each.forward)
            return {"forward": seen.forward, "modules": seen.modules, "length": self._begun.length,
                    "bound": 1 / (1 - seen.share)}  # fmt: skip

        found = Time(**self._store.once("time", find))
        advance()
        return found

    def _judged(self) -> Sequence[Outcome]:
        """What the dense model makes of the search's exams; one that only guesses has nothing to lose, and is refused.

        Raises:
            ValueError: dense attention is at chance in the exam that decides.
        """
        exams = self._begun.parts.search
        advance = self._stage("score of dense attention", _steps(exams))
        outcomes = dense(exams, self._pretrained, advance)
        exams[0].refuse_guesses(exams[0].scores(outcomes[0], outcomes[0]))
        return outcomes

    def _chosen(self, spent: Time) -> Choices:
        """Time the candidates, then see what they harm."""
        search, counts = self._begun.parts.search, self._begun.plan.counts
        inputs, advance = self._inputs(search[0]), self._stage("time of each candidate", 1)
        names = candidates(self._pretrained.kind, self._begun.length)[: counts.candidates]
        seconds = self._begun.plan.kernels
        found = self._store.once(
            "costs", lambda: list(clock_candidates(self._pretrained, inputs, names, seconds, lambda: None))
        )
        advance()
        self._costs = Costs(*found)
        names = worth(self._costs, names, counts.candidates)
        where = places(self._pretrained, inputs)
        looked = [(exam, index) for exam in search for index in range(self._looked(exam))]
        advance = self._stage("what each head can spare", len(looked))
        if self._ahead is not None:
            self._ahead.ask([
                Ask(_harm(exam, index), "harm", names=names, exam=number, entry=index)
                for number, exam in enumerate(search) for index in range(self._looked(exam))
            ])  # fmt: skip
        harms = []
        for exam, index in looked:
            harms.append(self._store.once(_harm(exam, index), lambda e=exam, i=index: self._harm(e, i, where, names)))
            advance()
        return Choices(self._costs, sensitivity.mean_of_each(harms, [exam.second for exam, _ in looked]), names)

    def _harm(self, exam: Exam, index: int, where: Any, names: Sequence[str]) -> Any:
        return sensitivity.look(self._pretrained, self._inputs(exam, index), where, names, last=exam.second)

    def _of_linears(self) -> tuple[tuple[str, ...], ...]:
        """The family of plans by which linear layers leave inputs out; none where that makes nothing faster."""
        if not self._begun.linears:
            return ()
        exam = self._begun.parts.search[0]
        advance = self._stage("what each linear layer can spare", 1)
        inputs = [self._inputs(exam, index) for index in range(min(exam.forwards, prefill.LOOKED))]
        names = self._store.once("linears", lambda: list(prefill.family(self._pretrained, self._begun.linears, inputs)))
        advance()
        return (tuple(names),) if names else ()

    def _looked(self, exam: Exam) -> int:
        """How many forwards show what heads can spare: no more than there are unlike ones."""
        counts = self._begun.plan.counts
        return min(exam.forwards, counts.search_second if exam.second else counts.search)

    def _best(self, spent: Time, choices: Choices, outcomes: Sequence[Outcome], points: int) -> Measured | None:
        """What is to be proved; None where nothing that was measured gains anything and keeps the limits.

        It is kept before the first proof. Another one, found with the time of a run that goes on, would be tried on
        data that has been seen, as if nothing had been tried there before.
        """
        search = self._search = self._begin_search(choices, outcomes)
        best = self._searched(spent, search, points)
        searched = search.looks
        if self._families:
            advance = self._stage("loss of what is of the whole model", shorten.measurements(len(self._families)))
            best, self._whole_model = shortest.find(
                self._families, choices, search, best, spent.forward, self._quick,
                lambda: self._may_search(spent, "looks"), advance,
            )  # fmt: skip
        if self._before is not None:
            return self._before.best
        if best is not None:
            chosen.keep(self._store, Chosen(best, searched, search.looks))
        return best

    def _begin_search(self, choices: Choices, outcomes: Sequence[Outcome]) -> Search:
        counts, settings = self._begun.plan.counts, self._settings
        planned = [
            min(exam.items, counts.prove) if exam.clustered else exam.items for exam in self._begun.parts.proofs[0]
        ]
        exams = self._begun.parts.search
        return Search(choices, exams, self._pretrained, settings.max_loss, planned, self._store, outcomes)

    def _searched(self, spent: Time, search: Search, points: int) -> Measured | None:
        advance = self._stage("loss of whole assignments", _steps(self._begun.parts.search) * points)
        if self._ahead is not None and points and self._before is None:
            first = [each.assignment for each in search.foreseen(points)]
            self._ahead.ask([
                Ask(key(each, None), "lost", assignment={module: tuple(heads) for module, heads in each.items()})
                for each in first
            ])  # fmt: skip
        return search.run(points, advance, lambda: self._may_search(spent, "searched"))

    def _may_search(self, spent: Time, until: Literal["searched", "looks"]) -> bool:
        """Whether the loss of another assignment can be measured, and still be proved.

        Where the choice was made before, what was measured up to there, and no more.
        """
        if self._before is not None and self._search is not None:
            return self._search.looks < getattr(self._before, until)
        needed = sum(exam.entries for exam in self._begun.parts.search if not exam.beside)
        return self._in_time(spent, self._least + needed)

    @property
    def _least(self) -> int:
        """Forwards of the shortest proof."""
        exams = self._begun.parts.proofs[0]
        return _PAIR * LEAST.prove * sum(not exam.beside for exam in exams)

    def _quick(self, each: Measured) -> float:
        """The speed-up of the whole model, in a short race."""
        inputs, heads = self._inputs(self._begun.parts.search[0]), each.point.assignment
        return self._store.once(
            f"clock {each.whole} {sorted(methods(heads).items())}",
            lambda: race(self._pretrained, heads, inputs, LEAST_ROUNDS, each.whole).speedup.median,
        )

    def _proved(self, spent: Time, choices: Choices, best: Measured) -> tuple[Point, str | None] | None:
        point, whole = best.point, best.whole
        tries = self._begun.parts.proofs
        for number, exams in enumerate(tries):
            advance = self._stage("proof" if number == 0 else "proof, tightened", 2 * _steps(exams))
            found = prove(
                number, point.assignment, best.worst, exams, self._pretrained, self._settings.max_loss, self._store,
                advance, lambda: self._in_time(spent, _PAIR), whole, self._begun.parts.data(number),
                self._ahead, number + 1 == len(tries),
            )  # fmt: skip
            self._tries.append(found)
            if found.holds:
                return point, whole
            point = choices.milder(point, _TIGHTER)
            whole = None if whole is None else shorten.milder(self._families, whole)
            nothing = whole is None and (point.saved <= 0 or self._is_dense(point))
            if nothing or not self._in_time(spent, self._least):
                return None
        return None

    def _is_dense(self, point: Point) -> bool:
        """Whether that leaves nothing out: it needs no proof, which could fail on what rounding changes."""
        return self._choices is not None and point.assignment == self._choices.point(0).assignment

    def _unproved(self) -> str:
        lost = self._tries[-1].lost
        last = next((each for each in lost if not each.holds), lost[-1])
        how = "on held-out data" if len(self._tries) == 1 else f"on held-out data, in {len(self._tries)} tries"
        return f"that the loss of {last.task} stays below {last.limit:.2%} could not be proved {how}"

    def _in_time(self, spent: Time, forwards: float) -> bool:
        """Whether so many forwards can be begun, and the race still be run."""
        race = 2 * spent.forward * (self._begun.plan.rounds + 1)
        return self._clock.left > self._begun.entry * forwards + race

    def _raced(self, spent: Time, proved: Point, whole: str | None) -> Tuning:
        self._rival = self._held_against(spent, proved)
        speed = self._race(spent, proved, whole)
        if speed.speedup.q1 <= 1:
            return self._exact(
                spent, f"the assignment keeps the limit, but gains nothing: {speed.speedup.median:.2f} times"
            )
        gained = f"{speed.speedup.median:.2f} times as fast as with SDPA, within the limit"
        return self._result(spent, "faster", gained, proved, speed, whole)

    def _exact(self, spent: Time, reason: str) -> Tuning:
        """Dense attention of this project, which loses nothing, where that alone makes the model faster."""
        point = None if self._choices is None else self._choices.point(0)
        if point is None or foretold.speedup(spent, point) < LEAST_GAIN:
            return self._dense(spent, reason)
        speed = self._race(spent, point, None)
        if speed.speedup.q1 <= 1:
            return self._dense(spent, reason)
        self._rival = None
        gained = (
            f"{speed.speedup.median:.2f} times as fast as with SDPA by dense attention of this library, which "
            f"loses nothing. Of sparse attention: {reason}"
        )
        return self._result(spent, "faster", gained, point, speed, exact=True)

    def _race(self, spent: Time, point: Point, whole: str | None) -> Raced:
        advance = self._stage("speed-up of the whole model", 1)
        inputs = self._inputs(self._begun.parts.proofs[0][0])
        rounds = self._rounds(spent)
        found = self._store.once(
            f"race {whole} {sorted(methods(point.assignment).items())}",
            lambda: race(self._pretrained, point.assignment, inputs, rounds, whole).model_dump(mode="json"),
        )
        advance()
        return Raced(**found)

    def _rounds(self, spent: Time) -> int:
        """Of the race: what the plan says at the least, and more where there is time, since a few tell little where
        something else runs."""
        fits = int(_OF_THE_REST * self._clock.left / (2 * spent.forward)) - 1
        return max(self._begun.plan.rounds, min(_MOST_ROUNDS, fits))

    def _held_against(self, spent: Time, proved: Point) -> Rival | None:
        """One method for all heads, where there is time for it."""
        number, lost = len(self._tries) - 1, self._tries[-1].lost[0]
        exam, data = self._begun.parts.proofs[number][0], self._begun.parts.data(number)
        other = (
            None
            if self._choices is None
            else rival.chosen(self._choices, proved, self._search.measured if self._search else ())
        )
        items = lost.looks if exam.entries > 1 else self._begun.plan.counts.prove  # one entry is scored whole
        if other is None or not self._in_time(spent, items + 2 * (LEAST_ROUNDS + 1)):
            return None
        name, point = other
        advance = self._stage(f"{name} for all heads", exam.portion(0, lost.looks).data.steps)
        speedup = self._quick(Measured(point, (), (), 0.0))
        return rival.measure(
            name, point, speedup, lost, exam, data, self._pretrained, self._store, advance, self._settings.max_loss,
            number + 1,
        )  # fmt: skip

    def _dense(self, spent: Time, reason: str) -> Tuning:
        return self._result(spent, "dense", f"keep dense attention: {reason}", None, None)

    def _result(
        self, spent: Time, verdict: Any, reason: str, point: Point | None, speed: Raced | None,
        whole: str | None = None, exact: bool = False,
    ) -> Tuning:  # fmt: skip
        self._pretrained.model.set_attn_implementation("sdpa")
        heads = {} if point is None else {module: list(names) for module, names in point.assignment.items()}
        return Tuning(
            model=self._settings.model, kind=self._pretrained.kind, description=self._pretrained.description,
            dtype=self._settings.dtype, phase=self._settings.phase, settings=self._settings.plain(), machine=machine(),
            verdict=verdict, reason=reason, time=spent, candidates=self._costs.seconds if self._costs else [],
            heads=heads, considered=foretold.considered(spent, self._choices, self._search),
            whole_model=self._whole_model, gains=foretold.gains(spent, self._choices, self._search), tries=self._tries,
            rival=self._rival, speed=speed, seconds=time.perf_counter() - self._began, exact=exact,
            **split(whole),
        )  # fmt: skip

    def _inputs(self, exam: Exam, index: int = 0) -> Any:
        return exam.inputs_on(self._pretrained.model.device, index)


def _steps(exams: Exams) -> int:
    """How often progress is told where each exam is taken once."""
    return sum(exam.data.steps for exam in exams if not exam.beside)


def _harm(exam: Exam, index: int) -> str:
    """The name in the store of what a text tells about harm."""
    return f"harm {exam.task.name} {index}"
