"""``dynattn tune --phase decode``: the fastest way to decode after a prompt that keeps the limits, and its proof."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial

import numpy as np

from dynattn.lab.decode import ways
from dynattn.lab.decode.prompt import read, step_seconds
from dynattn.lab.machine import machine
from dynattn.lab.models import Pretrained, context
from dynattn.lab.progress import Stage
from dynattn.lab.proof import Proof, Verdict
from dynattn.lab.tasks.texts import Text, wikipedia
from dynattn.lab.timing import Timing, interleaved, own_seconds
from dynattn.lab.tune import decoding, pieces
from dynattn.lab.tune.clock import Clock
from dynattn.lab.tune.decode_results import Considered, Decoding, Tried
from dynattn.lab.tune.decode_search import Search, guesses, limit_of
from dynattn.lab.tune.decoding import AFTER, IN_PLACE, TASKS, Reading, Task
from dynattn.lab.tune.exams import FEWEST, bound_of, decided, proof_of
from dynattn.lab.tune.linears.steps import Linears
from dynattn.lab.tune.parts import TRIES
from dynattn.lab.tune.plan import LEAST
from dynattn.lab.tune.results import Lost, Raced
from dynattn.lab.tune.settings import LEAST_LENGTH, Settings
from dynattn.lab.tune.store import Store

LENGTH = 2048
"""Tokens of the prompt where none are asked for."""

_SEARCH, _PROVE = 4, 64  # texts of the search and of the proof, which goes on while there is time
_LEAST = LEAST.prove  # texts below which nothing is proved
_ROUNDS = 5


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
        self._linears = Linears(pretrained, [reading.ids for reading in self._parts[0][0]])
        self._search = Search(
            self._parts[0], settings.max_loss, min(map(len, self._parts[1])), self._linears, self._scored,
            lambda *asked: self._steps(*asked), store, stage, clock,
        )  # fmt: skip
        self._contexts: dict[str, Callable[[], AbstractContextManager[None]]] = {}
        self._considered: list[Considered] = []
        self._tries: list[Tried] = []

    def tune(self) -> Decoding:
        """All of it."""
        # Kept before the first proof: with the time of a run that goes on, another choice would be one more try on
        # texts that were seen.
        found = self._store.once("chosen", lambda: self._search.run(decoding.candidates(self._length)))
        self._search.methods, kept = found["methods"], found["kept"]
        self._considered = [Considered(**each) for each in found["considered"]]
        for number, (way, worst) in enumerate(kept[:TRIES]):
            if way == IN_PLACE:  # nothing to prove
                break
            self._tries.append(self._tried(number, way, worst))
            if self._tries[-1].holds:
                return self._raced(way)
        if self._tries:
            return self._exact("that the loss stays below the limit could not be proved")
        return self._exact("none of them is faster and keeps the limits")

    def _scored(
        self, key: str, reading: Reading, names: Sequence[str], advance: Callable[[], None]
    ) -> dict[str, list[float]]:
        found = self._store.once(key, lambda: decoding.nats(self._pretrained.model, reading, names, self._applied))
        advance()
        return found

    def _applied(self, label: str) -> Callable[[], AbstractContextManager[None]]:
        """What has the linear layers work by a setting."""
        if label not in self._contexts:
            self._contexts[label] = self._linears.context(self._search.methods[label])
        return self._contexts[label]

    def _steps(self, names: Sequence[str], rounds: int, reading: Reading) -> dict[str, Timing]:
        """Steps after a prompt, by the default and by each way, in alternation."""
        model, every = self._pretrained.model, (ways.BASELINE, *names)
        thin = {name: decoding.around(name, self._applied) for name in every}
        prompt = read(model, reading.ids[:, : reading.start].to(model.device))
        after = reading.ids[:, reading.start : reading.start + decoding.STEPS].to(model.device)

        def seconds(name: str) -> float:
            with thin[name]():
                return step_seconds(model, prompt, ways.find(decoding.parted(name)[0]), after)

        functions = {name: partial(seconds, name) for name in every}
        return interleaved(functions, rounds=rounds, min_sample=None, each=after.shape[1], elapsed=own_seconds)

    def _tried(self, number: int, way: str, worst: Sequence[float]) -> Tried:
        """The tasks take turns, text by text, so that where the time ends both have got as far."""
        advance = self._stage(f"proof of {way}", sum(map(len, self._parts[1])))
        proofs = [
            proof_of(limit_of(self._settings.max_loss, task), "perplexity", number + 1, most)
            for task, most in zip(TASKS, worst, strict=True)
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
            silent = len(scores[1][0]) > 0 and guesses(scores[1][0], self._parts[0][1][0])
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
            silent=task is TASKS[1] and guesses(dense, self._parts[0][1][0]),
        )  # fmt: skip

    def _race(self, way: str) -> Raced:
        advance = self._stage("speed of a step", 1)
        timings = self._steps([way], _ROUNDS, self._parts[1][0][0])
        advance()
        return Raced.of(timings[ways.BASELINE], timings[way])

    def _exact(self, reason: str) -> Decoding:
        """Dense attention of this project over a cache in place, which loses nothing, where that makes steps faster."""
        others = f"Of ways that forget or leave something out: {reason}"
        if all(each.way != IN_PLACE or (each.speedup or 0.0) <= 1 for each in self._considered):
            return self._result(f"keep the default. {others}", None, None)
        speed = self._race(IN_PLACE)
        if speed.speedup.q1 <= 1:
            return self._result(f"keep the default: a cache in place gains nothing. {others}", None, speed)
        said = (
            f"{IN_PLACE}: {speed.speedup.median:.2f} times as fast a step as with Transformers' default, which loses "
            f"nothing. {others}"
        )
        return self._result(said, IN_PLACE, speed, exact=True)

    def _raced(self, way: str) -> Decoding:
        speed = self._race(way)
        if speed.speedup.q1 <= 1:
            return self._result(f"keep the default: {way} keeps the limits, but gains nothing", None, speed)
        said = (
            f"{way}: {speed.speedup.median:.2f} times as fast a step as with Transformers' default, within the limits"
        )
        return self._result(said, way, speed)

    def _result(self, reason: str, way: str | None, speed: Raced | None, exact: bool = False) -> Decoding:
        self._pretrained.model.set_attn_implementation("sdpa")
        label = None if way is None else decoding.parted(way)[1]
        setting = None if label is None else self._linears.setting(self._search.methods[label]).plain()
        return Decoding(
            model=self._settings.model, description=self._pretrained.description, dtype=self._settings.dtype,
            length=self._length, settings=self._settings.plain(), machine=machine(),
            verdict="dense" if way is None else "faster", reason=reason, way=way, considered=self._considered,
            tries=self._tries, speed=speed, seconds=self._clock.spent, linears=setting,
            exact=exact,
        )  # fmt: skip


def room(pretrained: Pretrained) -> int | None:
    """The most tokens that a prompt can have; None where the model does not say."""
    most = context(pretrained)
    return None if most is None else most - AFTER


def _parts(
    pretrained: Pretrained, texts: Sequence[Text] | None, length: int
) -> tuple[list[tuple[list[Reading], ...]], str]:
    """The texts of the search and those of the proof, neither of which has the other's; and what they are, in words."""
    if pretrained.kind != "decoder":
        raise ValueError(
            f"tune: only decoders decode: {pretrained.name} is of kind {pretrained.kind}; leave --phase out"
        )
    most = room(pretrained)
    if most is not None and length > most:
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
