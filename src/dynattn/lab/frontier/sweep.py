"""Runs the sweep: it plans the cells, and has those measured that the record lacks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from dynattn.lab.frontier.apply import CACHE, canonical
from dynattn.lab.frontier.cell import DENSE, Cell, Entry, Exam, Phase, Race, Search, digest
from dynattn.lab.frontier.decode import answers
from dynattn.lab.frontier.measure import SweepJob
from dynattn.lab.frontier.methods import BUDGETS, FAMILIES, check, entries, named, taking_part
from dynattn.lab.frontier.results import Frontier, Solved, address
from dynattn.lab.frontier.stages import Runner, clock, score, solve
from dynattn.lab.frontier.store import Store
from dynattn.lab.frontier.store import load as load_record
from dynattn.lab.machine import machine
from dynattn.lab.models import DTYPES, Kind, Pretrained, facts, load
from dynattn.lab.progress import Stage
from dynattn.lab.records import reserve
from dynattn.lab.tasks import default, find, fitting, make, takes_texts
from dynattn.lab.tasks.embedding import longest
from dynattn.lab.tasks.texts import read

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
        families: families of that table; empty for all.
        budgets: shares of the pairs to keep, each 1 over a whole number.
        measured: look for the methods that keep the budgets as measured, see :mod:`dynattn.lab.frontier.budgets`; else
            methods are asked to keep them.
        tasks: names; empty for those that fit the model.
        tokens: lengths of the texts; empty for those that fit the model.
        items: the number of items of each task; None for the task's default.
        phases: the phases of the model's work.
        text: the user's own texts, see :func:`dynattn.lab.tasks.texts.read`.
        seconds: how long to spend on timing each method at each length; 0 times nothing.
        dtype: the dtype of the model, and so of dense attention and of all methods: one of
            :data:`dynattn.lab.models.DTYPES`.
    """

    model: str = "minilm"
    methods: tuple[str, ...] = ()
    families: tuple[str, ...] = ()
    budgets: tuple[float, ...] = BUDGETS
    measured: bool = False
    tasks: tuple[str, ...] = ()
    tokens: tuple[int, ...] = ()
    items: int | None = None
    phases: tuple[Phase, ...] = ("prefill",)
    text: Path | None = None
    seconds: float = 1.0
    dtype: str = "float32"

    def __post_init__(self) -> None:
        for field, values in (("items", (self.items,)), ("tokens", self.tokens)):
            for value in values:
                if value is not None and value < 1:
                    raise ValueError(f"frontier: {field} must be at least 1: got {value}; leave it out for the default")
        if self.seconds < 0:
            raise ValueError(f"frontier: seconds must not be negative: got {self.seconds}; 0 times nothing")
        if self.dtype not in DTYPES:
            raise ValueError(f"frontier: dtype must be one of {', '.join(DTYPES)}: got {self.dtype!r}; leave it out")
        for phase in self.phases:
            if phase not in get_args(Phase):
                raise ValueError(f"frontier: phase must be one of {', '.join(get_args(Phase))}: got {phase!r}")
        check(self.budgets)
        for family in self.families:
            if family not in FAMILIES:
                raise ValueError(f"frontier: family must be one of {', '.join(FAMILIES)}: got {family!r}")
        if self.methods and (self.families or self.measured):
            raise ValueError(
                "frontier: methods that are named have no budget to look for and no family: got "
                f"{', '.join(self.methods)}; leave them out, or --measured"
            )
        for name in self.methods:
            canonical(name)
        for name in self.tasks:
            find(name)


def plan(
    settings: Settings, kind: Kind, solved: Mapping[str, Solved] | None = None
) -> tuple[list[Cell], list[tuple[Exam, Entry]]]:
    """What a whole sweep measures.

    Args:
        settings: what was asked for.
        kind: the model's.
        solved: the methods that keep the budgets, by the address of the search, where they are to be measured.

    Returns:
        The cells, dense attention's among them, the longest inputs first, since they take longest; and what is timed:
        every method at every length, with the input of the first task that it takes.
    """
    cells, timed, clocked = [], [], set[tuple[Phase, int | None, str]]()
    for exam in _exams(settings, kind):
        chosen = _asked(settings, exam.phase) or _of_table(settings, kind, exam, solved or {})
        cells += [Cell(exam=exam, entry=entry) for entry in (DENSE, *chosen)]
        timed += [(exam, entry) for entry in chosen if (exam.phase, exam.tokens, entry.name) not in clocked]
        clocked |= {(exam.phase, exam.tokens, entry.name) for entry in chosen}
    return cells, timed


def _exams(settings: Settings, kind: Kind) -> list[Exam]:
    texts = None if settings.text is None else digest([list(text) for text in read(settings.text)])
    lengths = sorted(settings.tokens or _TOKENS[kind], key=lambda tokens: -(tokens or 0))
    items = settings.items or _ITEMS.get(kind)
    return [
        Exam(
            model=settings.model, phase=phase, task=task, tokens=tokens, items=items, texts=texts, dtype=settings.dtype
        )
        for phase in settings.phases
        for tokens in lengths
        for task in _tasks(settings, kind, phase)
    ]


def _searches(settings: Settings, kind: Kind, exam: Exam) -> list[Search]:
    families = taking_part(kind, exam.phase, exam.task, settings.families)
    return [Search(exam=exam, family=family, budget=budget) for family in families for budget in settings.budgets]


def _of_table(settings: Settings, kind: Kind, exam: Exam, solved: Mapping[str, Solved]) -> list[Entry]:
    """The methods of the table: as their budgets name them, or those that keep these."""
    if not settings.measured:
        return entries(kind, exam.phase, exam.tokens, settings.budgets, exam.task, settings.families)
    found = [solved.get(search.key) for search in _searches(settings, kind, exam)]
    return [
        Entry(name=each.name, family=each.search.family, budget=each.search.budget)
        for each in found
        if each is not None and each.in_reach
    ]


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
    if pretrained.kind in ("encoder", "decoder"):
        most = max(tokens for tokens in settings.tokens or _TOKENS[pretrained.kind] if tokens)
        if (takes := longest(pretrained, most)) < most:
            raise ValueError(
                f"frontier: tokens must be as many as the model takes: got {most}, {settings.model} takes {takes}; "
                f"pass --tokens {takes} or fewer"
            )


def _check_record(settings: Settings, path: Path) -> None:
    """Refuse to go on with a record of another model or dtype."""
    there = load_record(path)
    for what, found, asked in (("model", there.model, settings.model), ("dtype", there.dtype, settings.dtype)):
        if found != asked:
            raise ValueError(
                f"frontier: a record must be of one {what}: {path} is of {found}, not of {asked}; give another --output"
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
        if path.exists():  # before the model is loaded
            _check_record(settings, path)
        _check_kind(settings, facts(settings.model).kind, texts is not None)
        advance = stage(f"load {settings.model}", 1)
        pretrained = load(settings.model, settings.dtype)
        advance()
        _check_length(settings, pretrained)
        return _measured(SweepJob(settings.model, texts, settings.dtype), settings, pretrained, path, stage, runner)


def _measured(
    job: SweepJob, settings: Settings, pretrained: Pretrained, path: Path, stage: Stage, runner: Runner
) -> Frontier:
    exams = _exams(settings, pretrained.kind)
    for task in dict.fromkeys(exam.task for exam in exams):  # a task that cannot be would fail in every cell
        make(task, pretrained, texts=job.texts)
    store = Store(path, Frontier(
        model=settings.model, kind=pretrained.kind, description=pretrained.description, machines={}, sheets={},
        grades={}, times={}, failures={}, seconds=0.0, measured=settings.measured, dtype=settings.dtype,
    ))  # fmt: skip
    store.forget_failures()
    if settings.measured:
        solve(job, [search for exam in exams for search in _searches(settings, pretrained.kind, exam)], store, stage)
    cells, timed = plan(settings, pretrained.kind, store.found.solved)
    score(job, cells, store, stage, runner)
    if settings.seconds:
        facts = machine()
        races = [Race(exam=exam, entry=entry, machine=address(facts)) for exam, entry in timed]
        clock(job, races, store, settings.seconds, facts, stage)
    return store.found
