"""Runs the sweep: it plans the cells, and has those measured that the record lacks."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import torch

from dynattn.lab.frontier.apply import CACHE, canonical
from dynattn.lab.frontier.cell import DENSE, Cell, Entry, Exam, Phase, Race, digest
from dynattn.lab.frontier.decode import answers
from dynattn.lab.frontier.measure import EXPECTED, Answer, SweepJob
from dynattn.lab.frontier.methods import BUDGETS, check, entries, named
from dynattn.lab.frontier.race import race
from dynattn.lab.frontier.results import Failure, Frontier, address
from dynattn.lab.frontier.store import Store
from dynattn.lab.frontier.store import load as load_record
from dynattn.lab.machine import machine
from dynattn.lab.models import Kind, Pretrained, facts, load
from dynattn.lab.progress import Stage
from dynattn.lab.records import reserve
from dynattn.lab.tasks import default, find, fitting, make, takes_texts
from dynattn.lab.tasks.embedding import longest
from dynattn.lab.tasks.texts import read

Runner = Callable[[SweepJob, Sequence[Cell]], Generator[Answer, None, None]]
"""Measures cells, in processes on this machine or on a cluster."""

_TASKS: dict[tuple[Kind, str], tuple[str, ...]] = {  # else those of dynattn compare
    ("encoder", "prefill"): ("retrieval", "manpages"),
    ("decoder", "prefill"): ("perplexity", "needle"),
    ("decoder", "decode"): ("needle", "multi-needle"),
}
_TOKENS: dict[Kind, tuple[int | None, ...]] = {
    "encoder": (128, 256),
    "decoder": (512, 1024),
    "vision": (None,),
    "speech": (None,),
}
_ITEMS: dict[Kind, int] = {"encoder": 24}  # else the task's: what a default sweep of ten minutes has time for


@dataclass(frozen=True)
class Settings:
    """What to compare.

    Args:
        model: a name that :func:`dynattn.lab.models.load` takes.
        methods: short names; empty for the table of :mod:`dynattn.lab.frontier.methods` at the budgets.
        budgets: shares of the pairs to keep, each 1 over a whole number.
        tasks: names; empty for those that fit the model.
        tokens: lengths of the texts; empty for those that fit the model.
        items: the number of items of each task; None for the task's default.
        phases: the phases of the model's work.
        text: the user's own texts, see :func:`dynattn.lab.tasks.texts.read`.
        seconds: how long to spend on timing each method at each length; 0 times nothing.
    """

    model: str = "minilm"
    methods: tuple[str, ...] = ()
    budgets: tuple[float, ...] = BUDGETS
    tasks: tuple[str, ...] = ()
    tokens: tuple[int, ...] = ()
    items: int | None = None
    phases: tuple[Phase, ...] = ("prefill",)
    text: Path | None = None
    seconds: float = 1.0

    def __post_init__(self) -> None:
        for field, values in (("items", (self.items,)), ("tokens", self.tokens)):
            for value in values:
                if value is not None and value < 1:
                    raise ValueError(f"frontier: {field} must be at least 1: got {value}; leave it out for the default")
        if self.seconds < 0:
            raise ValueError(f"frontier: seconds must not be negative: got {self.seconds}; 0 times nothing")
        for phase in self.phases:
            if phase not in get_args(Phase):
                raise ValueError(f"frontier: phase must be one of {', '.join(get_args(Phase))}: got {phase!r}")
        check(self.budgets)
        for name in self.methods:
            canonical(name)
        for name in self.tasks:
            find(name)


def plan(settings: Settings, kind: Kind) -> tuple[list[Cell], list[tuple[Exam, Entry]]]:
    """What a whole sweep measures.

    Args:
        settings: what was asked for.
        kind: the model's.

    Returns:
        The cells, dense attention's among them, the longest inputs first, since they take longest; and what is timed:
        every method at every length, with the input of the first task that it takes.
    """
    texts = None if settings.text is None else digest([list(text) for text in read(settings.text)])
    lengths = sorted(settings.tokens or _TOKENS[kind], key=lambda tokens: -(tokens or 0))
    items = settings.items or _ITEMS.get(kind)
    cells, timed = [], []
    for phase in settings.phases:
        tasks = _tasks(settings, kind, phase)
        for tokens in lengths:
            asked, clocked = _asked(settings, phase), set[str]()
            for task in tasks:
                chosen = asked or entries(kind, phase, tokens, settings.budgets, task)
                exam = Exam(model=settings.model, phase=phase, task=task, tokens=tokens, items=items, texts=texts)
                cells += [Cell(exam=exam, entry=entry) for entry in (DENSE, *chosen)]
                timed += [(exam, entry) for entry in chosen if entry.name not in clocked]
                clocked |= {entry.name for entry in chosen}
    return cells, timed


def _asked(settings: Settings, phase: Phase) -> list[Entry]:
    """Methods that were named, of those that take part in a phase: caches that forget do so while decoding."""
    every = named(settings.methods)
    chosen = [entry for entry in every if phase == "decode" or not entry.name.startswith(CACHE)]
    if every and not chosen:
        raise ValueError(
            f"frontier: caches that forget take part in the decode phase alone: got {', '.join(settings.methods)}; "
            "pass --phases decode"
        )
    return chosen


def _tasks(settings: Settings, kind: Kind, phase: Phase) -> tuple[str, ...]:
    """Those of a phase."""
    if phase == "decode" and kind != "decoder":
        raise ValueError(f"frontier: only decoders decode: {settings.model} is of kind {kind}; leave --phases out")
    tasks = settings.tasks or _TASKS.get((kind, phase)) or default(kind, settings.model)
    if settings.text is not None and not settings.tasks:
        tasks = tuple(task for task in tasks if takes_texts(task)) or tasks
    fitting = tuple(task for task in tasks if phase == "prefill" or answers(task))
    if not fitting:
        raise ValueError(
            f"frontier: the decode phase takes tasks that ask for an answer: got {', '.join(tasks)}; try "
            f"{', '.join(_TASKS['decoder', 'decode'])}"
        )
    return fitting


def _check_kind(settings: Settings, kind: Kind, texts: bool) -> None:
    """Refuse, before the model is loaded, phases and tasks that are not for its kind."""
    for phase in settings.phases:
        _asked(settings, phase)
        for task in _tasks(settings, kind, phase):
            fitting(task, kind, settings.model, texts)


def _check_length(settings: Settings, pretrained: Pretrained) -> None:
    """Refuse what tasks would cut to the model's length, and the record would call by the length asked for."""
    if settings.tokens and pretrained.kind in ("encoder", "decoder"):
        most = max(settings.tokens)
        if (takes := longest(pretrained, most)) < most:
            raise ValueError(
                f"frontier: tokens must be as many as the model takes: got {most}, {settings.model} takes {takes}; "
                "leave out longer texts"
            )


def sweep(settings: Settings, path: Path, stage: Stage, runner: Runner) -> Frontier:
    """Measure what the record at ``path`` lacks, and write it after every result.

    Args:
        settings: what to compare.
        path: the path of the record.
        stage: shows progress.
        runner: measures the cells.

    Returns:
        The whole record.

    Raises:
        ValueError: a name is unknown, a length is more than the model takes, or the record there does not fit.
    """
    texts = None if settings.text is None else read(settings.text)
    with reserve(path):
        if path.exists() and (there := load_record(path).model) != settings.model:  # before the model is loaded
            raise ValueError(
                f"frontier: a record must be of one model: {path} is of {there}, not of {settings.model}; give another "
                "--output"
            )
        _check_kind(settings, facts(settings.model).kind, texts is not None)
        advance = stage(f"load {settings.model}", 1)
        pretrained = load(settings.model)
        advance()
        _check_length(settings, pretrained)
        return _measured(SweepJob(settings.model, texts), settings, pretrained, path, stage, runner)


def _measured(
    job: SweepJob, settings: Settings, pretrained: Pretrained, path: Path, stage: Stage, runner: Runner
) -> Frontier:
    cells, timed = plan(settings, pretrained.kind)
    for task in dict.fromkeys(cell.exam.task for cell in cells):  # a task that cannot be would fail in every cell
        make(task, pretrained, texts=job.texts)
    store = Store(path, Frontier(
        model=settings.model, kind=pretrained.kind, description=pretrained.description, machines={}, sheets={},
        grades={}, times={}, failures={}, seconds=0.0,
    ))  # fmt: skip
    store.forget_failures()
    _score(job, cells, store, stage, runner)
    if settings.seconds:
        facts = machine()
        races = [Race(exam=exam, entry=entry, machine=address(facts)) for exam, entry in timed]
        _time(job, races, store, settings.seconds, facts, stage)
    return store.found


def _score(job: SweepJob, cells: Sequence[Cell], store: Store, stage: Stage, runner: Runner) -> None:
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


def _time(job: SweepJob, races: Sequence[Race], store: Store, seconds: float, facts: dict, stage: Stage) -> None:
    """Races of methods that passed the exam: one that failed it would fail again."""
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
