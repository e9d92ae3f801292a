"""Compares methods at equal measured budgets on SmolLM2 in bfloat16, after The Sparse Frontier (arXiv:2504.17768).

    python benchmarks/fair.py plan                  # what each part measures, and about how long it takes on two cores
    python benchmarks/fair.py record 2048           # benchmarks/results/fair/2048.json; then 4096 and 8192 likewise
    python benchmarks/fair.py record 2048 prefill   # one part of it: dense, prefill or decode
    python benchmarks/fair.py table                 # the tables of docs/frontier.md from what is recorded

Dense attention is put through all tasks first, at 2048 tokens. Those in which it does not choose half of the answers
rightly, or does no better than guessing, are left out, there and at the other lengths, and named; in the first of the
others every family is measured at every budget that one of its methods keeps. While decoding, dense attention is asked
in these tasks alone: it reads the same texts and the same questions as in one forward. Nothing is timed. A run that was
killed goes on when the command is given again. It fails where a method beats dense attention beyond chance, and where
something could not be measured.

How much is asked is what two cores have an hour for at each length, in bfloat16: a processor that multiplies it (Zen 4,
Sapphire Rapids) takes less than half of float32's time for this model. The tables say how large a loss must be to be
seen by so few items.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import NamedTuple

import numpy as np
from marked import markdown, rewritten
from rich.console import Console

from dynattn.lab.frontier import Settings, sweep, workers
from dynattn.lab.frontier.alarm import beating
from dynattn.lab.frontier.cell import DENSE, Phase
from dynattn.lab.frontier.decode import answers
from dynattn.lab.frontier.methods import taking_part
from dynattn.lab.frontier.results import Frontier
from dynattn.lab.frontier.sections import left_out, limit_rows, unreached
from dynattn.lab.frontier.store import load
from dynattn.lab.frontier.summary import at_chance_in, contenders, phases
from dynattn.lab.machine import describe, machine
from dynattn.lab.statistics import interval
from dynattn.lab.terminal import quiet_transformers, stages

RESULTS = Path(__file__).parent / "results" / "fair"
PAGE = Path(__file__).parent.parent / "docs" / "frontier.md"
START, END = "<!-- fair: written by benchmarks/fair.py -->", "<!-- end -->"
MODEL, DTYPE = "smollm2", "bfloat16"
READ = "perplexity"  # each text is many items, and there is no question
TASKS = (
    "multi-needle", "ruler-needles", "ruler-variables", "ruler-common-words", "ruler-frequent-words", "story-filtering",
    "story-multi-hop", "variables", "needle", "story-retrieval", READ,
)  # fmt: skip
"""Those by likelihood are there for a model that fails most of the others, and tell more with few items; perplexity is
for prefill alone. Where not all can be asked of methods, the first ones are, and perplexity: 16 questions a text, as in
story-retrieval, take longest."""
BUDGETS = (1 / 2, 1 / 5, 1 / 10)
FAMILIES: dict[Phase, tuple[str, ...]] = {
    "prefill": ("vertical-slash", "FlexPrefill", "block mass", "top-k"),
    "decode": ("cache: Quest", "cache: SnapKV", "cache: Ada-SnapKV", "cache: window"),
}
PARTS: tuple[str, ...] = ("dense", *FAMILIES)


class Size(NamedTuple):
    """How much is measured at a length, and about how long one forward takes.

    Attributes:
        tasks: so many are asked of methods, besides perplexity.
        items: prompts of each task.
        texts: of perplexity, each with an item for every 128 tokens.
        workers: processes; each holds the model, and while decoding the caches of all prompts.
        dense: seconds of one input in one of the processes, with its share of two cores of a Zen 4.
        sparse: likewise with a method, in the mean over the families.
    """

    tasks: int
    items: int
    texts: int
    workers: int
    dense: float
    sparse: float


FIRST = 2048
SIZES = {FIRST: Size(3, 12, 4, 2, 5.0, 4.5), 4096: Size(2, 8, 3, 2, 14.0, 10.0), 8192: Size(1, 6, 2, 1, 22.0, 14.0)}
COUNTED, SEARCHED = 4, 1  # forwards that it takes to count a cell's work, and to look for what keeps a budget
QUESTIONS = {"ruler-needles": 4, "story-retrieval": 16, "story-multi-hop": 4}  # else one
ASKED = 0.1  # forwards that a question takes behind a text
STEP = 1.0  # seconds that a question takes over a cache of 2048 tokens, which is cut anew for each


def settings(tokens: int, phase: Phase, tasks: Sequence[str], budgets: Sequence[float]) -> list[Settings]:
    """Of one part, a sweep for each number of items; without budgets, dense attention alone."""
    size = SIZES[tokens]
    groups = [
        (size.items, [task for task in tasks if task != READ]),
        (size.texts, [task for task in tasks if task == READ]),
    ]
    return [
        Settings(
            model=MODEL, families=FAMILIES[phase], budgets=tuple(budgets), measured=True, tasks=tuple(asked),
            tokens=(tokens,), items=items, phases=(phase,), seconds=0.0, dtype=DTYPE,
        )
        for items, asked in groups
        if asked
    ]  # fmt: skip


def record(tokens: int, parts: Sequence[str]) -> int:
    """Measure what the record lacks; 1 where a method beats dense attention beyond chance, or something failed."""
    path, failures = RESULTS / f"{tokens}.json", 0
    path.parent.mkdir(parents=True, exist_ok=True)
    count = SIZES[tokens].workers
    run = partial(workers.run, workers=count, threads=max(1, machine()["cores"] // count))
    quiet_transformers()
    with stages(Console()) as stage:
        for part in PARTS:
            if part in parts:
                for asked in sweeps(tokens, part):
                    failures += len(sweep(asked, path, stage, run).failures)
    wrong = beating(load(path)) if path.exists() else []
    for line in wrong:
        print(line)
    return int(bool(wrong or failures))


def sweeps(tokens: int, part: str) -> list[Settings]:
    """Of a part; none where dense attention does enough in no task.

    Raises:
        SystemExit: dense attention was not yet recorded where it decides which tasks there are.
    """
    if part == "dense":
        return settings(tokens, "prefill", TASKS if tokens == FIRST else told(FIRST, tokens), ())
    tasks = told(tokens, tokens)
    if part == "prefill":
        return settings(tokens, "prefill", tasks, BUDGETS)
    return settings(tokens, "decode", [task for task in tasks if answers(task)], BUDGETS)


def told(recorded: int, tokens: int) -> tuple[str, ...]:
    """The tasks that are asked of methods: the first of those in which dense attention does enough.

    Args:
        recorded: the length whose record tells that.
        tokens: the length at which they are asked.

    Raises:
        SystemExit: there is no such record, or at 2048 tokens not yet of all tasks.
    """
    path = RESULTS / f"{recorded}.json"
    sheets = load(path).sheets.values() if path.exists() else ()
    there = {sheet.exam.task for sheet in sheets if sheet.exam.phase == "prefill"}
    if not there or (recorded == FIRST and not there.issuperset(TASKS)):
        raise SystemExit(
            f"fair: dense attention must have been recorded at {recorded} tokens first, since it decides which tasks "
            f"are asked: {path.name} has {len(there)} tasks; run python benchmarks/fair.py record {recorded} dense"
        )
    short = {sheet.exam.task for sheet in at_chance_in(load(path), "prefill")}
    return first([task for task in TASKS if task in there - short], tokens)


def first(tasks: Sequence[str], tokens: int) -> tuple[str, ...]:
    """As many as there is time for at a length, and perplexity."""
    return (*[task for task in tasks if task != READ][: SIZES[tokens].tasks], *(task for task in tasks if task == READ))


def table(found: Frontier, tokens: int) -> str:
    """The limits of every phase, what could be seen, what was left out, and the machine, in Markdown."""
    blocks = []
    for phase in phases(found):
        columns, rows = limit_rows(found, phase)
        notes = [*seen(found, phase), *left_out(found, phase), *dense_alone(found, phase), *unreached(found, phase)]
        head = f"**{tokens} tokens, {phase}, in {found.dtype}**"
        blocks += [head, *([markdown(columns, rows)] if rows else []), *notes]
    last = list(found.machines.values())[-1:]
    return "\n\n".join([*blocks, *(f"{describe(facts)}." for facts in last)])


def dense_alone(found: Frontier, phase: Phase) -> list[str]:
    """The exams that dense attention passed and no method was put through, in a sentence; none where there is none."""
    compared = {grade.cell.exam.key for grade in found.grades.values() if grade.cell.entry != DENSE}
    passed = [sheet.exam for sheet in found.sheets.values() if sheet not in at_chance_in(found, phase)]
    alone = [exam.title for exam in passed if exam.phase == phase and exam.key not in compared]
    return [f"Asked of dense attention alone: {', '.join(alone)}."] if alone else []


def seen(found: Frontier, phase: Phase) -> list[str]:
    """How large a loss must be to be significant, in a sentence; none where no method was measured.

    That is what is lost where the interval of what is retained, which reaches as far above its middle as it does in the
    median over the exam's cells, ends at 100%. Cells whose scores are all dense attention's have no part in it.
    """
    reach: dict[str, list[float]] = {}
    items: dict[str, int] = {}
    for contender in contenders(found, phase):
        for one in contender.results:
            high = one.retained.high
            if high is not None and not one.at_chance and high > one.retained.mean:
                mean = one.retained.mean  # a difference of scores, or a ratio of probabilities
                lost = high - mean if one.sheet.higher_is_better else 1 - mean / high
                reach.setdefault(one.sheet.exam.title, []).append(lost)
                items[one.sheet.exam.title] = len(one.sheet.items)
    if not reach:
        return []
    each = [
        f"{title} {median(its):.1%} ({items[title]} items, of which {fewest(items[title])} or more must come off worse)"
        for title, its in reach.items()
    ]
    return [f"A loss is significant, in the median over the cells, from about this on: {'; '.join(each)}."]


def fewest(items: int) -> int:
    """How many items must come off worse, by as much and none better, for a 95% interval to leave 0 out.

    A resample that holds none of k worse items, of n, says that nothing was lost: (1 - k/n)^n of all do.

    Args:
        items: n, at least 4, with which there are intervals.
    """
    lost = (interval(-(np.arange(items) < worse).astype(float)).high for worse in range(items + 1))
    return next(worse for worse, high in enumerate(lost) if high is not None and high < 0)


def tables() -> None:
    """Write the page's tables from the records that there are."""
    found = [table(load(path), tokens) for tokens in SIZES if (path := RESULTS / f"{tokens}.json").exists()]
    PAGE.write_text(rewritten(PAGE.read_text(), START, "\n\n".join(found) or "Not recorded yet.", END, "fair"))


def seconds(tokens: int, part: str, task: str) -> float:
    """About how long a part of a task takes, of one process; budgets out of reach take none."""
    size, questions = SIZES[tokens], QUESTIONS.get(task, 1)
    items = size.texts if task == READ else size.items
    read = items * (1 + ASKED * questions)  # forwards
    if part == "dense":
        return (read + COUNTED) * size.dense
    phase: Phase = "prefill" if part == "prefill" else "decode"
    cells = len(taking_part("decoder", phase, task, FAMILIES[phase])) * len(BUDGETS)
    if phase == "prefill":
        return cells * (read + COUNTED + SEARCHED) * size.sparse
    prompts = size.workers * items * 1.2 * size.dense  # every process reads them, and what they pay attention to
    return prompts + (cells + 1) * (items * questions + 1) * STEP * tokens / FIRST


def plan() -> str:
    """What each part measures, and about how many minutes it takes: of the first tasks, where none is recorded yet."""
    rows = []
    known = (RESULTS / f"{FIRST}.json").exists()  # with what dense attention does in every task
    for tokens, size in SIZES.items():
        tasks = told(FIRST, tokens) if known else first(TASKS, tokens)
        for part in PARTS:
            asked = TASKS if (part, tokens) == ("dense", FIRST) else tasks
            if part == "decode":
                asked = [task for task in asked if answers(task)]
            minutes = sum(seconds(tokens, part, task) for task in asked) / size.workers / 60
            rows.append([str(tokens), part, ", ".join(asked), str(size.items), f"{minutes:.0f}"])
    return markdown(["tokens", "part", "tasks", "items", "minutes"], rows)


def main(arguments: list[str]) -> int:
    """Record, write the page, or say what recording takes."""
    match arguments:
        case ["plan"]:
            print(plan())
            return 0
        case ["table"]:
            tables()
            return 0
        case ["record", tokens, *parts] if tokens.isdigit() and int(tokens) in SIZES:
            if set(parts) <= set(PARTS):
                return record(int(tokens), parts or PARTS)
    print(__doc__)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
