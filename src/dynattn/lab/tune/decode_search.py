"""What ``--phase decode`` looks at: ways to decode, then settings of linear layers, then both together.

All that forgets or leaves something out is measured on the texts of the search, by both tasks; what keeps the limits is
timed by real steps. Settings of linear layers come in families. Of each the strongest that keeps the limits is looked
for over a cache that loses nothing, and then, of the fastest family, over the fastest cache that keeps them by itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from dynattn.lab.decode import ways
from dynattn.lab.progress import Stage
from dynattn.lab.statistics import at_chance
from dynattn.lab.timing import LEAST_ROUNDS, Timing
from dynattn.lab.tune.clock import Clock
from dynattn.lab.tune.decode_results import Considered
from dynattn.lab.tune.decoding import IN_PLACE, TASKS, Reading, Task, joined, parted
from dynattn.lab.tune.exams import margins, proof_of, widened, worst_item
from dynattn.lab.tune.halving import strongest
from dynattn.lab.tune.keys import DIGITS
from dynattn.lab.tune.linears.clock import Seconds
from dynattn.lab.tune.linears.steps import Linears, Methods
from dynattn.lab.tune.linears.words import sentence
from dynattn.lab.tune.plan import LEAST
from dynattn.lab.tune.search import GOOD
from dynattn.lab.tune.store import Store

_SHARE_OF_TWO = 0.5  # of the time for all ways, what two of them take after one prompt
_FOR_LINEARS = 0.5  # of the time that is left after all ways, for settings of linear layers
_MILDER = 0.4  # of the loss, after a proof that failed
_SPARE = 1.25  # times the shortest proof, the time that is left for it in any case

Scored = Callable[[str, Reading, Sequence[str], Callable[[], None]], dict[str, list[float]]]
"""Nats by name; takes a name in the store, a text, names of ways, and what is called after it."""

Steps = Callable[[Sequence[str], int, Reading], dict[str, Timing]]
"""Times of steps by name, Transformers' default among them; takes names of ways, rounds and a text."""


class Held(NamedTuple):
    """What a way lost in a task.

    Attributes:
        loss: relative.
        worst: what an item is taken to lose at most.
        keeps: whether the proof would find that the limit is kept, were its items like these.
    """

    loss: float
    worst: float
    keeps: bool


class Search:
    """Looks for the fastest ways that keep the limits.

    Args:
        readings: the texts, for each task.
        max_loss: relative.
        there: texts of the proof that there are.
        linears: the model's linear layers.
        scored: measures what is lost.
        steps: measures what steps take.
        store: keeps what was found.
        stage: shows progress.
        clock: tells the time that is left.

    Attributes:
        methods: of linear layers, by the label of a setting.
    """

    def __init__(
        self, readings: Sequence[Sequence[Reading]], max_loss: float, there: int, linears: Linears, scored: Scored,
        steps: Steps, store: Store, stage: Stage, clock: Clock,
    ) -> None:  # fmt: skip
        self._readings, self._max_loss, self._there, self._linears = readings, max_loss, there, linears
        self._scored, self._steps, self._store, self._stage, self._clock = scored, steps, store, stage, clock
        self.methods: dict[str, Methods] = {}
        self._scores: list[list[dict[str, list[float]]]] = [[{} for _ in its] for its in readings]
        self._held: dict[str, list[Held]] = {}
        self._speedups: dict[str, float] = {}
        self._pace = 0.0  # seconds of a text
        self._rest = 1.0  # of the time that is left after all ways, what the proof may take

    def run(self, names: Sequence[str]) -> dict[str, Any]:
        """Everything, as JSON can hold it.

        Args:
            names: of ways, the mildest first.

        Returns:
            ``kept``, the ways that keep the limits and are faster, in the order in which a proof is to be tried, with
            what an item is taken to lose at most; ``considered``; ``methods``, see above.
        """
        costs = self._costs()
        self._rest = 1 - _FOR_LINEARS if costs else 1.0
        before = self._clock.spent
        scored = self._lost(names, "loss of each way to decode")
        self._pace = (self._clock.spent - before) / sum(map(len, self._readings))
        self._hold(names, scored)
        self._time(names)
        if costs:
            self._with_linears(costs)
        considered = [
            Considered(
                way=name, losses=[its.loss for its in each], keeps=_keeps(each), speedup=self._speedups.get(name),
                linears=None if (label := parted(name)[1]) is None else sentence(self.methods[label]),
            )
            for name, each in self._held.items()
        ]  # fmt: skip
        return {
            "kept": [[name, [its.worst for its in self._held[name]]] for name in self._in_turn()],
            "considered": [each.model_dump() for each in considered],
            "methods": self.methods,
        }

    def _in_turn(self) -> list[str]:
        """The fastest way first. Where that is not proved, the fastest that loses a good deal less comes next."""
        faster = sorted((name for name, ratio in self._speedups.items() if ratio > 1), key=lambda n: -self._speedups[n])
        most = self._held[faster[0]][0].loss * _MILDER if faster else 0.0
        milder = next((name for name in faster[1:] if self._held[name][0].loss <= most), None)
        return faster if milder is None else [faster[0], milder, *(n for n in faster[1:] if n != milder)]

    def _costs(self) -> Seconds:
        """What linear layers take; empty where nothing that they can leave out makes them faster."""
        advance = self._stage("time of linear layers", 1)
        found = self._store.once("linear layers", self._linears.costs)
        advance()
        return found

    def _with_linears(self, costs: Seconds) -> None:
        """Settings of linear layers over a cache that loses nothing; of the fastest family over the fastest cache."""
        shortest = LEAST.prove * len(TASKS) * self._pace * _SHARE_OF_TWO
        until = max(self._clock.left * (1 - _FOR_LINEARS), _SPARE * shortest)
        if self._clock.left <= until:
            return
        advance = self._stage("what each linear layer can spare", 1)
        families = self._store.once("linear families", lambda: self._linears.families(costs))
        advance()
        self.methods = {
            f"{family}-{i}": methods for family, its in families.items() for i, methods in enumerate(its, 1)
        }
        labels = [[f"{family}-{i}" for i in range(1, len(its) + 1)] for family, its in families.items()]
        caches = [name for name in self._speedups if name != IN_PLACE]
        found = self._strongest([[joined(IN_PLACE, label) for label in its] for its in labels], until)
        if not found or not caches:
            return
        cache = max(caches, key=lambda name: self._speedups[name])
        if self._speedups[cache] <= self._speedups.get(IN_PLACE, 0.0):
            return
        label = parted(max(found, key=lambda name: self._speedups[name]))[1]
        milder = next(its[: its.index(label) + 1] for its in labels if label in its)
        self._strongest([[joined(cache, each) for each in milder]], until)

    def _strongest(self, families: Sequence[Sequence[str]], until: float) -> list[str]:
        """Of each family the strongest that keeps the limits; all that keep them are timed."""
        measured: list[str] = []

        def keeps(names: Sequence[str]) -> Mapping[str, bool]:
            measured.extend(names)
            self._hold(names, self._lost(names, "loss of linear layers that leave something out"))
            return {name: _keeps(self._held[name]) for name in names}

        found = [name for name in strongest(families, keeps, lambda: self._clock.left > until) if name is not None]
        self._time(measured)
        return found

    def _lost(self, names: Sequence[str], what: str) -> list[list[dict[str, list[float]]]]:
        """What ways score on all texts, the default among them from the first time on."""
        advance = self._stage(what, sum(map(len, self._readings)))
        for task, readings, scores in zip(TASKS, self._readings, self._scores, strict=True):
            for i, (reading, known) in enumerate(zip(readings, scores, strict=True)):
                asked = names if ways.BASELINE in known else (ways.BASELINE, *names)
                known |= self._scored(f"search {task.name} {i} {' '.join(asked)}", reading, asked, advance)
        return self._scores

    def _hold(self, names: Sequence[str], scores: Sequence[Sequence[Mapping[str, list[float]]]]) -> None:
        """See which ways keep the limits."""
        for name in names:
            self._held[name] = [
                self._of_task(task, its, name) for task, its in zip(TASKS, scores, strict=True)
            ]  # fmt: skip

    def _of_task(self, task: Task, scores: Sequence[Mapping[str, list[float]]], name: str) -> Held:
        dense, own = (np.array([np.mean(each[way]) for each in scores]) for way in (ways.BASELINE, name))
        limit = limit_of(self._max_loss, task)
        worst = worst_item(own - dense, math.log1p(limit), margins(True, task is TASKS[1]))
        verdict = proof_of(limit, "perplexity", 1, worst).foresee(dense, own, self._planned)
        silent = task is TASKS[1] and guesses(dense, self._readings[1][0])
        return Held(float(np.expm1((own - dense).mean())), worst, silent or verdict.high <= GOOD * limit)

    @cached_property
    def _planned(self) -> int:
        """Texts of a task that the time allows the proof, which reads on in two ways, and the search in all."""
        each = self._pace * _SHARE_OF_TWO
        fits = int(self._rest * self._clock.left / (each * len(TASKS))) if each > 0 else self._there
        return self._store.once("planned", lambda: min(self._there, max(LEAST.prove, fits)))

    def _time(self, names: Sequence[str]) -> None:
        """Time those that keep the limits, and the one that loses nothing."""
        good = [name for name in names if name == IN_PLACE or _keeps(self._held[name])]
        if not good:
            return
        timings = self._store.once(f"clock {' '.join(good)}", lambda: {
            name: vars(timing) for name, timing in self._steps(good, LEAST_ROUNDS, self._readings[0][0]).items()
        })  # fmt: skip
        made = {
            name: Timing(tuple(each["samples"]), each["calls"], tuple(each["waited"])) for name, each in timings.items()
        }
        self._speedups |= {name: made[name].speedup(made[ways.BASELINE]).median for name in good}


def limit_of(max_loss: float, task: Task) -> float:
    """The relative loss that is allowed in a task."""
    return widened(max_loss, task.times)


def guesses(dense: np.ndarray, reading: Reading) -> bool:
    """Whether the dense model itself does not read numbers back.

    Args:
        dense: (items,) its nats per token.
        reading: a text with numbers.
    """
    first, last = reading.spans[0]
    return at_chance(tuple(map(float, dense)), DIGITS * math.log(10) / (last - first), False)


def _keeps(held: Sequence[Held]) -> bool:
    return all(each.keeps for each in held)
