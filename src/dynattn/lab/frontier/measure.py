"""Measures one cell at a time. A process loads the model and the data once, then scores and counts."""

from __future__ import annotations

import os
import time
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch

from dynattn.lab import scoring
from dynattn.lab.data.packages import PackageUnavailableError
from dynattn.lab.decode.prompt import Prompt
from dynattn.lab.figures import BASELINE
from dynattn.lab.frontier import decode
from dynattn.lab.frontier.apply import applied
from dynattn.lab.frontier.cell import Cell, Exam
from dynattn.lab.frontier.results import Failure, Grade, InputWork, Sheet, address
from dynattn.lab.frontier.work import LOOKED, look
from dynattn.lab.machine import machine
from dynattn.lab.models import Pretrained, load
from dynattn.lab.scoring import evaluate, task_result
from dynattn.lab.statistics import cosines
from dynattn.lab.tasks import DataMissingError, Outcome, Prepared, Task, make
from dynattn.lab.tasks.texts import Text

EXPECTED = (ValueError, RuntimeError, TypeError, ImportError, OSError, DataMissingError, PackageUnavailableError)
"""Errors of a cell that do not end the sweep: a method that does not take the model, data that is missing."""


class SweepJob(NamedTuple):
    """The settings that all cells of a sweep share. They are sent to the workers.

    Attributes:
        model: the name of the model.
        texts: the user's own texts, or None.
        dtype: that the model is loaded in.
    """

    model: str
    texts: tuple[Text, ...] | None
    dtype: str


class Answer(NamedTuple):
    """A worker's answer: a sheet, a grade and the machine's facts, or a failure."""

    cell: Cell
    sheet: Sheet | None
    grade: Grade | None
    machine: dict[str, Any]
    failure: Failure | None
    seconds: float


def begin(threads: int) -> None:
    """Make this process a worker that uses so many threads."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # otherwise each worker's tokenizer takes every core
    torch.set_num_threads(threads)
    from transformers.utils import logging

    logging.disable_progress_bar()


def measure(job: SweepJob, cell: Cell) -> Answer:
    """Score a method in an exam, and count its work.

    Args:
        job: the job of the sweep.
        cell: which.

    Returns:
        The answer; a failure where the method, the model or the data does not do.
    """
    start = time.perf_counter()
    facts = machine()
    try:
        sheet, grade = _grade(job, cell, address(facts))
    except EXPECTED as error:
        failure = Failure(exam=cell.exam, entry=cell.entry, reason=str(error))
        return Answer(cell, None, None, facts, failure, time.perf_counter() - start)
    return Answer(cell, sheet, grade, facts, None, grade.seconds)


def prepare(job: SweepJob, exam: Exam) -> tuple[Pretrained, Task, Prepared]:
    """Model, task and data of an exam; kept for the next cell of the same task and length."""
    pretrained = _loaded(job.model, job.dtype)
    return pretrained, *_prepared(job, exam.task, exam.tokens, exam.items)


def _grade(job: SweepJob, cell: Cell, machine: str) -> tuple[Sheet, Grade]:
    start = time.perf_counter()
    _, task, data = prepare(job, cell.exam)
    scores, work = _decoded(job, cell) if cell.exam.phase == "decode" else _prefilled(job, cell)
    described = task_result(task, data, [], 0.0).model_dump(exclude={"name", "seconds", "results"})
    sheet = Sheet(exam=cell.exam, least=task.least, **described)
    seconds = time.perf_counter() - start
    if not np.isfinite(scores).all():
        wrong = int(np.flatnonzero(~np.isfinite(scores))[0])
        raise ValueError(
            f"measure: scores must be finite: {cell.entry.name} gives {scores[wrong]} for {data.labels[wrong]}; the "
            "model's weights or its inputs are not finite, or the method divides by nothing there"
        )
    grade = Grade(cell=cell, scores=[float(score) for score in scores], work=work, seconds=seconds, machine=machine)
    return sheet, grade


def _prefilled(job: SweepJob, cell: Cell) -> tuple[np.ndarray, InputWork]:
    pretrained, task, data = prepare(job, cell.exam)
    with applied(pretrained, cell.entry.name) as implementation:
        outcome = evaluate(task, data, pretrained, implementation, lambda: None)
    scores = outcome.scores
    if scores is None:
        scores = cosines(outcome, _dense(job, cell.exam.task, cell.exam.tokens, cell.exam.items))
    if scores is None:
        raise ValueError(f"measure: a task must give scores or outputs: {task.name} gives neither")
    return scores, look(pretrained, cell.entry.name, data.examples[:LOOKED])


def _decoded(job: SweepJob, cell: Cell) -> tuple[np.ndarray, InputWork]:
    pretrained, _, data = prepare(job, cell.exam)
    before = _prompts(job, cell.exam.task, cell.exam.tokens, cell.exam.items)
    scores = decode.examine(pretrained, cell.entry.name, data, before)
    return np.array(scores), decode.look(pretrained, cell.entry.name, data, before)


@lru_cache(maxsize=1)
def _prompts(job: SweepJob, name: str, tokens: int | None, items: int | None) -> list[Prompt]:
    return decode.prompts(_loaded(job.model, job.dtype), _prepared(job, name, tokens, items)[1])


@lru_cache(maxsize=1)
def _loaded(model: str, dtype: str) -> Pretrained:
    return load(model, dtype)


@lru_cache(maxsize=1)
def _prepared(job: SweepJob, name: str, tokens: int | None, items: int | None) -> tuple[Task, Prepared]:
    pretrained = _loaded(job.model, job.dtype)
    task = make(name, pretrained, items=items, tokens=tokens, texts=job.texts)
    return task, scoring.prepare(task, pretrained)


@lru_cache(maxsize=1)
def _dense(job: SweepJob, name: str, tokens: int | None, items: int | None) -> Outcome:
    """Dense attention's outputs, for tasks whose score is the agreement with them."""
    return evaluate(*_prepared(job, name, tokens, items), _loaded(job.model, job.dtype), BASELINE, lambda: None)
