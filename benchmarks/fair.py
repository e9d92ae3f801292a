"""Compares methods at equal measured budgets on SmolLM2, after The Sparse Frontier (arXiv:2504.17768).

    python benchmarks/fair.py plan                  # what each part measures, and about how long it takes on two cores
    python benchmarks/fair.py record 2048           # benchmarks/results/fair/2048.json; 4096 and 8192 likewise
    python benchmarks/fair.py record 2048 prefill   # one part of it: dense, prefill or decode
    python benchmarks/fair.py table                 # the tables of docs/frontier.md from what is recorded

Dense attention is put through all tasks first. Those in which it does not choose half of the answers rightly are left
out, and named; in the others every family is measured at every budget that one of its methods keeps. Nothing is timed.
A run that was killed goes on when the command is given again. It fails where a method beats dense attention beyond
chance, and where something could not be measured.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from marked import markdown, rewritten
from rich.console import Console

from dynattn.lab.frontier import Settings, sweep, workers
from dynattn.lab.frontier.alarm import beating
from dynattn.lab.frontier.cell import Phase
from dynattn.lab.frontier.methods import taking_part
from dynattn.lab.frontier.results import Frontier
from dynattn.lab.frontier.sections import left_out, limit_rows, unreached
from dynattn.lab.frontier.store import load
from dynattn.lab.frontier.summary import at_chance_in, phases
from dynattn.lab.machine import describe, machine
from dynattn.lab.terminal import quiet_transformers, stages

RESULTS = Path(__file__).parent / "results" / "fair"
PAGE = Path(__file__).parent.parent / "docs" / "frontier.md"
START, END = "<!-- fair: written by benchmarks/fair.py -->", "<!-- end -->"
MODEL = "smollm2"
TASKS = (
    "ruler-needles", "ruler-variables", "ruler-common-words", "ruler-frequent-words", "story-retrieval",
    "story-multi-hop", "story-filtering", "multi-needle", "perplexity",
)  # fmt: skip
"""The last two, by likelihood, are for a model that fails most of the others; perplexity is for prefill alone."""
BUDGETS = (1 / 2, 1 / 5, 1 / 10, 1 / 20)
PREFILL = ("vertical-slash", "FlexPrefill", "block top-k", "block mass", "N:M, stride 16", "top-k")
NOT_DECODED = ("DSA", "fixed", "random")  # in plain PyTorch, and baselines by which nothing here is decided
ALL: tuple[Phase, ...] = ("prefill", "decode")


class Size(NamedTuple):
    """How much is measured at a length, and about how long one forward takes.

    Attributes:
        items: prompts of each task.
        workers: processes; each holds the model, and while decoding the caches of all prompts.
        seconds: of one input, both cores at work: at 2048 tokens the 3.7 s of results/compare and a third more for an
            older machine, else in proportion to the FLOPs.
    """

    items: int
    workers: int
    seconds: float


SIZES = {2048: Size(24, 2, 5.0), 4096: Size(16, 2, 12.0), 8192: Size(12, 1, 33.0)}
LOOKED = 6  # forwards that count a cell's work
STEP = 0.1  # seconds of 16 tokens, or of one, over a cache
ASKED = 30  # pieces of 16 tokens that the questions of a prompt have, at most


def families(phase: Phase) -> tuple[str, ...]:
    """The families that are compared in a phase."""
    if phase == "prefill":
        return PREFILL
    return tuple(family for family in taking_part("decoder", "decode") if family not in NOT_DECODED)


def settings(tokens: int, phase: Phase, tasks: Sequence[str], budgets: Sequence[float]) -> Settings:
    """Of one part; without budgets, dense attention alone."""
    return Settings(
        model=MODEL, families=families(phase), budgets=tuple(budgets), measured=True, tasks=tuple(tasks),
        tokens=(tokens,), items=SIZES[tokens].items, phases=(phase,), seconds=0.0,
    )  # fmt: skip


def record(tokens: int, parts: Sequence[str]) -> int:
    """Measure what the record lacks; 1 where a method beats dense attention beyond chance, or something failed."""
    path, failures = RESULTS / f"{tokens}.json", 0
    path.parent.mkdir(parents=True, exist_ok=True)
    count = SIZES[tokens].workers
    run = partial(workers.run, workers=count, threads=max(1, machine()["cores"] // count))
    quiet_transformers()
    with stages(Console()) as stage:
        steps: list[tuple[str, Phase]] = [(part, phase) for part in parts for phase in ALL if part in ("dense", phase)]
        for part, phase in steps:
            tasks, budgets = (TASKS, ()) if part == "dense" else (told(load(path), phase), BUDGETS)
            if tasks:  # else dense attention does enough in none, and the table says so
                failures += len(sweep(settings(tokens, phase, tasks, budgets), path, stage, run).failures)
    wrong = beating(load(path))
    for line in wrong:
        print(line)
    return int(bool(wrong or failures))


def told(found: Frontier, phase: Phase) -> tuple[str, ...]:
    """The tasks in which dense attention does enough for a comparison."""
    short = {sheet.exam.task for sheet in at_chance_in(found, phase)}
    there = {sheet.exam.task for sheet in found.sheets.values() if sheet.exam.phase == phase}
    return tuple(task for task in TASKS if task in there - short)


def table(found: Frontier, tokens: int) -> str:
    """The limits of every phase, what was left out, and the machine, in Markdown."""
    blocks = []
    for phase in phases(found):
        columns, rows = limit_rows(found, phase)
        notes = [*left_out(found, phase), *unreached(found, phase)]
        head = f"**{tokens} tokens, {phase}**"
        blocks += [head, *([markdown(columns, rows)] if rows else []), *notes]
    last = list(found.machines.values())[-1:]
    return "\n\n".join([*blocks, *(f"{describe(facts)}." for facts in last)])


def tables() -> None:
    """Write the page's tables from the records that there are."""
    found = [table(load(path), tokens) for tokens in SIZES if (path := RESULTS / f"{tokens}.json").exists()]
    PAGE.write_text(rewritten(PAGE.read_text(), START, "\n\n".join(found) or "Not recorded yet.", END, "fair"))


def plan() -> str:
    """What each part measures at most, and about how many minutes it takes; budgets out of reach take none."""
    rows = []
    for tokens, size in SIZES.items():
        forward = size.items * size.seconds
        reading = size.items * 2 * size.seconds  # the prompts, and what they pay attention to
        cell = (size.items + LOOKED) * size.seconds
        decoded = size.items * ASKED * STEP * tokens / 2048 / size.workers
        cells = {phase: len(families(phase)) * len(BUDGETS) for phase in ALL}
        searched = {"prefill": 10 * size.seconds, "decode": 10 * STEP * tokens / 1024}  # seconds of one budget's search
        for part, seconds, count in (
            ("dense", len(TASKS) * (2 * forward + reading), 2 * len(TASKS)),
            ("prefill, a task", cells["prefill"] * (cell + searched["prefill"] / 3), cells["prefill"]),
            ("decode, a task", reading + cells["decode"] * (decoded + searched["decode"]), cells["decode"]),
        ):
            rows.append([str(tokens), part, str(size.items), str(count), f"{seconds / 60:.0f}"])
    return markdown(["tokens", "part", "items", "cells", "minutes"], rows)


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
            if set(parts) <= {"dense", *ALL}:
                return record(int(tokens), parts or ("dense", *ALL))
    print(__doc__)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
