"""``dynattn tune --phase decode``: the fastest way to decode after a prompt that keeps the limits, and its proof."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property, partial
from typing import NamedTuple

import numpy as np

from dynattn.integrations.transformers import register
from dynattn.lab.decode import ways
from dynattn.lab.decode.prompt import read, step_seconds
from dynattn.lab.figures import BASELINE
from dynattn.lab.machine import machine
from dynattn.lab.models import Pretrained
from dynattn.lab.progress import Stage
from dynattn.lab.proof import Proof, Verdict
from dynattn.lab.statistics import at_chance
from dynattn.lab.tasks.texts import Text, wikipedia
from dynattn.lab.timing import LEAST_ROUNDS, Timing, interleaved, own_seconds
from dynattn.lab.tune import decoding, pieces
from dynattn.lab.tune.candidates import SDPA
from dynattn.lab.tune.clock import Clock
from dynattn.lab.tune.decode_results import Considered, Decoding, Tried
from dynattn.lab.tune.decoding import AFTER, TASKS, Reading, Task
from dynattn.lab.tune.exams import FEWEST, bound_of, decided, proof_of, widened, worst_item
from dynattn.lab.tune.keys import DIGITS
from dynattn.lab.tune.parts import TRIES
from dynattn.lab.tune.plan import LEAST
from dynattn.lab.tune.results import Lost, Raced
from dynattn.lab.tune.search import GOOD
from dynattn.lab.tune.settings import LEAST_LENGTH, Settings
from dynattn.lab.tune.store import Store

LENGTH = 2048
"""Tokens of the prompt where none are asked for."""

_SEARCH, _PROVE = 4, 64  # texts of the search and of the proof, which goes on while there is time
_LEAST = LEAST.prove  # texts below which nothing is proved
_ROUNDS = 5
_SHARE_OF_TWO = 0.5  # of the time for all ways, what two of them take after one prompt


class Run:
    """One run, stage by stage.

    Args:
        settings: what was asked for.
        texts: the user's own; None for Wikipedia articles.
        pretrained: a decoder.
        store: of results.
        stage: shows progress.
        clock: tells the time that is left.
        length: tokens of the prompt; None for the settings'.

    Raises:
        ValueError: the model is no decoder, the length is beyond its context, or there are too few texts.
    """

    def __init__(
        self, settings: Settings, texts: Sequence[Text] | None, pretrained: Pretrained, store: Store, stage: Stage,
        clock: Clock, length: int | None = None,
    ) -> None:  # fmt: skip
        self._settings, self._pretrained, self._store = settings, pretrained, store
        self._stage, self._clock = stage, clock
        self._length = length or settings.length or LENGTH
        self._parts, self._whose = _parts(pretrained, texts, self._length)
        self._considered: list[Considered] = []
        self._tries: list[Tried] = []
        self._pace = 0.0  # seconds of a text of the search

    def tune(self) -> Decoding:
        """All of it."""
        names = decoding.candidates(self._length)
        kept = self._searched(names)
        for number, (way, worst) in enumerate(kept[:TRIES]):
            self._tries.append(self._tried(number, way, worst))
            if self._tries[-1].holds:
                return self._raced(way)
        if not kept:
            return self._result("keep the default: no way to decode is faster and keeps the limits", None, None)
        return self._result("keep the default: that the loss stays below the limit could not be proved", None, None)

    def _searched(self, names: Sequence[str]) -> list[tuple[str, list[float]]]:
        """The ways that keep the limits, the fastest first, with what an item is taken to lose at most."""
        every = (ways.BASELINE, *names)
        tasks = self._parts[0]
        advance = self._stage("loss of each way to decode", sum(map(len, tasks)))
        before = self._clock.spent
        scores = [
            [self._scored(f"search {task.name} {i}", reading, every, advance) for i, reading in enumerate(readings)]
            for task, readings in zip(TASKS, tasks, strict=True)
        ]
        self._pace = (self._clock.spent - before) / sum(map(len, tasks))
        found = {name: [self._held(task, each, name) for task, each in zip(TASKS, scores, strict=True)]
                 for name in names}  # fmt: skip
        good = [name for name in names if all(held.keeps for held in found[name])]
        speedups = self._clocked(good)
        self._considered = [
            Considered(way=name, losses=[held.loss for held in found[name]], keeps=name in good,
                       speedup=speedups.get(name))
            for name in names
        ]  # fmt: skip
        faster = sorted((name for name in good if speedups[name] > 1), key=lambda name: -speedups[name])
        return [(name, [held.worst for held in found[name]]) for name in faster]

    def _scored(
        self, key: str, reading: Reading, names: Sequence[str], advance: Callable[[], None]
    ) -> dict[str, list[float]]:
        found = self._store.once(key, lambda: decoding.nats(self._pretrained.model, reading, names))
        advance()
        return found

    def _held(self, task: Task, scores: Sequence[dict[str, list[float]]], name: str) -> _Held:
        dense, own = (np.array([np.mean(each[way]) for each in scores]) for way in (ways.BASELINE, name))
        limit = self._limit(task)
        worst = worst_item(own - dense, math.log1p(limit), mean=True)
        verdict = proof_of(limit, "perplexity", 1, worst).foresee(dense, own, self._planned)
        silent = task is TASKS[1] and self._guesses(dense)
        return _Held(float(np.expm1((own - dense).mean())), worst, silent or verdict.high <= GOOD * limit)

    @cached_property
    def _planned(self) -> int:
        """Texts of a task that the time allows the proof, which reads on in two ways, and the search in all."""
        each = self._pace * _SHARE_OF_TWO
        fits = int(self._clock.left / (each * len(TASKS))) if each > 0 else _PROVE
        there = min(map(len, self._parts[1]))
        return self._store.once("planned", lambda: min(there, max(_LEAST, fits)))

    def _limit(self, task: Task) -> float:
        return widened(self._settings.max_loss, task.times)

    def _guesses(self, dense: np.ndarray) -> bool:
        """Whether the dense model itself does not read numbers back."""
        first, last = self._parts[0][1][0].spans[0]
        return at_chance(tuple(map(float, dense)), DIGITS * math.log(10) / (last - first), False)

    def _clocked(self, names: Sequence[str]) -> dict[str, float]:
        if not names:
            return {}
        timings = self._store.once("clock", lambda: {
            name: vars(timing) for name, timing in self._steps(names, LEAST_ROUNDS, self._parts[0][0][0]).items()
        })  # fmt: skip
        made = {
            name: Timing(tuple(each["samples"]), each["calls"], tuple(each["waited"])) for name, each in timings.items()
        }
        return {name: made[name].speedup(made[ways.BASELINE]).median for name in names}

    def _steps(self, names: Sequence[str], rounds: int, reading: Reading) -> dict[str, Timing]:
        """Steps after a prompt, by the default and by each way, in alternation."""
        model = self._pretrained.model
        prompt = read(model, reading.ids[:, : reading.start].to(model.device))
        after = reading.ids[:, reading.start : reading.start + decoding.STEPS].to(model.device)
        functions = {
            name: partial(step_seconds, model, prompt, _loaded(name), after) for name in (ways.BASELINE, *names)
        }
        return interleaved(functions, rounds=rounds, min_sample=None, each=after.shape[1], elapsed=own_seconds)

    def _tried(self, number: int, way: str, worst: Sequence[float]) -> Tried:
        """The tasks take turns, text by text, so that where the time ends both have got as far."""
        advance = self._stage(f"proof of {way}", sum(map(len, self._parts[1])))
        proofs = [
            proof_of(self._limit(task), "perplexity", number + 1, most) for task, most in zip(TASKS, worst, strict=True)
        ]
        scores = [(np.array([]), np.array([])) for _ in TASKS]
        verdicts: list[Verdict | None] = [None] * len(TASKS)
        known: list[bool | None] = [None] * len(TASKS)
        for looks in range(min(map(len, self._parts[1]))):
            if (looks and self._clock.left <= 0) or all(its is True for its in known):
                break
            for at, task in enumerate(TASKS):
                if known[at] is not None:
                    continue
                found = self._scored(
                    f"proof {task.name} {looks} {way}", self._parts[1][at][looks], (ways.BASELINE, way), advance
                )
                scores[at] = tuple(  # type: ignore[assignment]
                    np.append(so_far, np.mean(found[name]))
                    for so_far, name in zip(scores[at], (ways.BASELINE, way), strict=True)
                )
                verdicts[at] = verdict = proofs[at].look(*scores[at])
                known[at] = decided(verdict, scores[at][1] - scores[at][0], worst[at], FEWEST)
            silent = len(scores[1][0]) > 0 and self._guesses(scores[1][0])
            if known[0] is False or (known[1] is False and not silent) or (known[0] and silent):
                break
        return Tried(way=way, lost=[
            self._lost(task, proof, verdict, *pair, its is True)
            for task, proof, verdict, pair, its in zip(TASKS, proofs, verdicts, scores, known, strict=True)
            if verdict is not None
        ])  # fmt: skip

    def _lost(
        self, task: Task, proof: Proof, verdict: Verdict, dense: np.ndarray, own: np.ndarray, proved: bool
    ) -> Lost:
        return Lost(
            task=task.name, metric=task.metric, items=len(dense),
            data=f"{len(dense)} {self._whose.removesuffix(',')}, after prompts of {self._length} tokens",
            dense=float(dense.mean()), tuned=float(own.mean()), loss=verdict.loss,
            bound=bound_of(verdict, own - dense, proof.worst, FEWEST), limit=proof.max_loss, level=verdict.level,
            looks=len(dense), worst=proof.worst, proved=proved,
            silent=task is TASKS[1] and self._guesses(dense),
        )  # fmt: skip

    def _raced(self, way: str) -> Decoding:
        advance = self._stage("speed of a step", 1)
        timings = self._steps([way], _ROUNDS, self._parts[1][0][0])
        advance()
        speed = Raced.of(timings[ways.BASELINE], timings[way])
        if speed.speedup.q1 <= 1:
            return self._result(f"keep the default: {way} keeps the limits, but gains nothing", None, speed)
        said = (
            f"{way}: {speed.speedup.median:.2f} times as fast a step as with Transformers' default, within the limits"
        )
        return self._result(said, way, speed)

    def _result(self, reason: str, way: str | None, speed: Raced | None) -> Decoding:
        self._pretrained.model.set_attn_implementation("sdpa")
        return Decoding(
            model=self._settings.model, description=self._pretrained.description, dtype=self._settings.dtype,
            length=self._length, settings=self._settings.plain(), machine=machine(),
            verdict="dense" if way is None else "faster", reason=reason, way=way, considered=self._considered,
            tries=self._tries, speed=speed, seconds=self._clock.spent,
        )  # fmt: skip


def _loaded(name: str) -> ways.Way:
    """A way as a loaded file has it: with PyTorch's dense kernel, through this project's attention."""
    way = ways.find(name)
    if name == ways.BASELINE or way.implementation != BASELINE:
        return way
    return replace(way, implementation=register(SDPA)[0])


def room(pretrained: Pretrained) -> int:
    """The most tokens that a prompt can have."""
    return pretrained.model.config.get_text_config().max_position_embeddings - AFTER


class _Held(NamedTuple):
    loss: float
    worst: float
    keeps: bool


def _parts(
    pretrained: Pretrained, texts: Sequence[Text] | None, length: int
) -> tuple[list[tuple[list[Reading], ...]], str]:
    """The texts of the search and those of the proof, neither of which has the other's; and what they are, in words."""
    if pretrained.kind != "decoder":
        raise ValueError(
            f"tune: only decoders decode: {pretrained.name} is of kind {pretrained.kind}; leave --phase out"
        )
    most = room(pretrained)
    if length > most:
        less = f"pass --length {most} or less" if most >= LEAST_LENGTH else "take a model of a longer context"
        raise ValueError(
            f"tune: length must leave room for {AFTER} tokens after the prompt: got {length}, {pretrained.name} takes "
            f"{most + AFTER}; {less}"
        )
    given = pieces.shuffled(wikipedia() if texts is None else texts)
    least = _SEARCH + _LEAST
    drawn = pieces.draw(pretrained, given, length + AFTER, _SEARCH + _PROVE, least)
    if len(drawn.pieces) < least:
        raise ValueError(
            f"tune: texts must hold at least {least} pieces of {length + AFTER} tokens: {len(given)} texts hold "
            f"{len(drawn.pieces)}; pass more or longer texts, or a shorter --length"
        )
    parts = [
        ([decoding.going_on(piece) for piece in part], decoding.numbers(pretrained, part, length, seed))
        for seed, part in enumerate((drawn.pieces[:_SEARCH], drawn.pieces[_SEARCH:]))
    ]  # fmt: skip
    return parts, drawn.whose
