"""The stages of a sweep: budgets are solved, cells scored, methods timed; what the record has is left out."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence
from contextlib import closing, nullcontext

import torch

from dynattn.lab.frontier.budgets import Scale
from dynattn.lab.frontier.cell import Cell, Entry, Race, Search
from dynattn.lab.frontier.measure import EXPECTED, Answer, SweepJob, prepare
from dynattn.lab.frontier.race import race
from dynattn.lab.frontier.results import Failure, address
from dynattn.lab.frontier.store import Store
from dynattn.lab.progress import Stage

Runner = Callable[[SweepJob, Sequence[Cell]], Generator[Answer, None, None]]
"""Measures cells, in processes on this machine or on a cluster."""


def solve(job: SweepJob, searches: Sequence[Search], store: Store, stage: Stage) -> None:
    """Look for the methods that keep the budgets, exam by exam, since each has its inputs.

    Args:
        job: the job of the sweep.
        searches: all that are planned, those of an exam one after another.
        store: the record.
        stage: shows progress.
    """
    advance, scale, at = stage("budgets", len(searches)), None, None
    for search in searches:
        if store.lacks(search):
            start = time.perf_counter()
            found: dict[str, dict] = {}
            try:
                if scale is None or at != search.exam:
                    pretrained, _, data = prepare(job, search.exam)
                    scale, at = Scale(pretrained, search.exam, data), search.exam
                solved = scale.solved(search)
                found = {} if solved is None else {"solved": {search.key: solved}}
            except EXPECTED as error:
                entry = Entry(name=search.family, family=search.family, budget=search.budget)
                found = {"failures": {search.key: Failure(exam=search.exam, entry=entry, reason=str(error))}}
            store.add(search, machines={}, seconds=time.perf_counter() - start, **found)
        advance()


def score(job: SweepJob, cells: Sequence[Cell], store: Store, stage: Stage, runner: Runner) -> None:
    """Have the cells measured that the record lacks.

    Args:
        job: the job of the sweep.
        cells: all that are planned.
        store: the record.
        stage: shows progress.
        runner: measures the cells.
    """
    advance = stage("quality", len(cells))
    wanted = [cell for cell in cells if store.lacks(cell)]
    for _ in range(len(cells) - len(wanted)):
        advance()
    began = time.perf_counter()
    with closing(runner(job, wanted)) if wanted else nullcontext(()) as answers:
        for answer in answers:
            took, began = time.perf_counter() - began, time.perf_counter()
            found = (
                {"failures": {answer.cell.key: answer.failure}}
                if answer.sheet is None or answer.grade is None
                else {"sheets": {answer.cell.exam.key: answer.sheet}, "grades": {answer.cell.key: answer.grade}}
            )
            store.add(answer.cell, machines={address(answer.machine): answer.machine}, seconds=took, **found)
            advance()


def clock(job: SweepJob, races: Sequence[Race], store: Store, seconds: float, facts: dict, stage: Stage) -> None:
    """Time the methods that passed the exam: one that failed it would fail again.

    Args:
        job: the job of the sweep.
        races: all that are planned.
        store: the record.
        seconds: how long to spend on each.
        facts: of this machine.
        stage: shows progress.
    """
    wanted = [race for race in races if store.found.grade(race.exam, race.entry)]
    advance = stage(f"time, on {torch.get_num_threads()} threads", len(wanted))
    for each in wanted:
        if store.lacks(each):
            start = time.perf_counter()
            try:
                found = {"times": {each.key: race(job, each, seconds)}}
            except EXPECTED as error:
                found = {"failures": {each.key: Failure(exam=each.exam, entry=each.entry, reason=str(error))}}
            took = time.perf_counter() - start
            store.add(each, machines={each.machine: facts}, seconds=took, **found)
        advance()
