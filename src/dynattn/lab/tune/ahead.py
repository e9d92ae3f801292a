"""What can be measured apart, ahead and by several processes: harm by text, assignments, texts of the proof.

A worker loads the model once and makes the exams anew, which are the same everywhere. What it answers goes into the
store, under the name by which the run will ask for it; so the run itself is the same with workers and without, and one
that was killed loses no answer that was given.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from functools import lru_cache
from typing import Any, NamedTuple

from dynattn.children import Pool
from dynattn.integrations.transformers import register
from dynattn.lab.frontier import cluster
from dynattn.lab.frontier.measure import begin
from dynattn.lab.models import Pretrained, load
from dynattn.lab.tasks import Outcome
from dynattn.lab.tasks.texts import Text
from dynattn.lab.tune import prove, search, sensitivity
from dynattn.lab.tune.ask import Ask
from dynattn.lab.tune.layers import Place, places
from dynattn.lab.tune.parts import Parts, parts
from dynattn.lab.tune.plan import Counts
from dynattn.lab.tune.store import Store


class Job(NamedTuple):
    """What all of a run share; sent to the workers.

    Attributes:
        model, dtype: to load.
        texts, length, counts, task: as :func:`dynattn.lab.tune.parts.parts` takes them.
        max_loss: relative.
    """

    model: str
    dtype: str
    texts: tuple[Text, ...] | None
    length: int | None
    counts: Counts
    task: str | None
    max_loss: float


class Ahead:
    """Measures ahead, where there are workers; they end with the body of its ``with``.

    Args:
        job: what they share.
        store: where answers go.
        workers: processes; None for none but this one, or, on a Ray cluster, for one a CPU.
        threads: of all of them.
        ray: measure on a Ray cluster.
    """

    def __init__(self, job: Job, store: Store, workers: int | None = None, threads: int = 1, ray: bool = False) -> None:
        self._job, self._store, self._workers, self._threads, self._ray = job, store, workers, threads, ray
        self._open = ExitStack()
        self._pool: Pool | None = None
        self._cluster: cluster.Cluster | None = None

    def __enter__(self) -> Ahead:
        return self

    def __exit__(self, *error: Any) -> None:
        self._open.__exit__(*error)

    @property
    def at_once(self) -> int:
        """How many questions are worth asking together; 0 where none are."""
        if self._ray:
            return self._reached().at_once
        return self._workers if self._workers is not None and self._workers > 1 else 0

    def ask(self, asks: Sequence[Ask], advance: Callable[[], None] = lambda: None) -> None:
        """Measure what the store does not have.

        Args:
            asks: the questions; none hangs on the answer to another.
            advance: called for each answer.

        Raises:
            RuntimeError: a worker died.
        """
        left = [each for each in asks if not self._store.has(each.key)]
        if not left:
            return
        if self._ray:
            for key, found in self._reached().measure(left):
                self._store.put(key, found)
                advance()
            return
        many = self.at_once
        if not many:
            return
        if self._pool is None:
            self._pool = self._open.enter_context(Pool(many, begin, (max(1, self._threads // many),)))
        try:
            for future in as_completed(self._pool.submit([(answer, self._job, each) for each in left])):
                self._store.put(*future.result())
                advance()
        except BrokenProcessPool as error:
            raise RuntimeError(
                "tune: workers must live until they are done: one died, for want of memory as a rule; what was "
                "finished is written: run the command again with fewer --workers"
            ) from error

    def _reached(self) -> cluster.Cluster:
        """The cluster; it is looked for where something has to be measured, so that what was found needs none."""
        if self._cluster is None:
            self._cluster = self._open.enter_context(cluster.Cluster(self._job, self._workers, answer, "tune"))
        return self._cluster


def answer(job: Job, ask: Ask) -> tuple[str, Any]:
    """What a worker finds, with its name in the store."""
    pretrained, made = _held(job)
    exams = made.proofs[ask.part] if ask.kind in ("dense", "own") else made.search
    if ask.kind == "harm":
        exam = exams[ask.exam]
        inputs = exam.inputs_on(pretrained.model.device, ask.entry)
        return ask.key, sensitivity.look(pretrained, inputs, _places(job), ask.names, last=exam.second)
    heads = ask.assignment or {}
    if ask.kind == "lost":
        return ask.key, search.scores(pretrained, heads, None, exams, _dense(job), job.max_loss, lambda: None)
    scorer = prove.Scorer(exams[ask.exam].portion(ask.entry, ask.entry + 1), pretrained, lambda: None)
    return ask.key, scorer.dense() if ask.kind == "dense" else scorer.own(heads, None)


@lru_cache(maxsize=1)
def _held(job: Job) -> tuple[Pretrained, Parts]:
    register()
    pretrained = load(job.model, job.dtype)
    return pretrained, parts(pretrained, job.texts, job.length, job.counts, job.task)


@lru_cache(maxsize=1)
def _places(job: Job) -> dict[str, Place]:
    pretrained, made = _held(job)
    return places(pretrained, made.search[0].inputs(0))


@lru_cache(maxsize=1)
def _dense(job: Job) -> list[Outcome]:
    pretrained, made = _held(job)
    return search.dense(made.search, pretrained, lambda: None)
