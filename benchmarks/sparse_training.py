"""Trains MiniLM to have N:M weights, by several recipes and beside dense weights and one-shot masks, at equal steps.

    python benchmarks/sparse_training.py 2-4 FOLDER      # a set of recipes: ten to fifteen minutes on one thread
    python benchmarks/sparse_training.py 1-8 FOLDER      # likewise; dense training is shared with the other set
    python benchmarks/sparse_training.py 2-4 FOLDER 3    # with 3 seeds, three times as long
    python benchmarks/sparse_training.py table           # the tables of docs/methods/sparse-training.md

The task is ``restore`` of ``dynattn finetune``, with passages of 128 tokens and 96 steps: a new head on the pretrained
encoder. Runs in FOLDER go on after a kill; a set writes benchmarks/results/weights/training-<set>.json in the end.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from finetune_table import table as rows_of
from marked import rewritten

from dynattn.lab.finetune.restore import Restore
from dynattn.lab.machine import briefly
from dynattn.lab.models import load
from dynattn.lab.records import write_record
from dynattn.lab.training import Experiment, Job
from dynattn.lab.training.results import Study
from dynattn.lab.training.study import study

RESULTS = Path(__file__).parent / "results" / "weights"
PAGE = Path(__file__).parent.parent / "docs" / "methods" / "sparse-training.md"
START, END = "<!-- {}: written by benchmarks/sparse_training.py -->", "<!-- end of {} -->"
SETS = {
    "2-4": ["nmweight-2-4", "sr-ste-2-4", "sr-ste-2-4-decoupled", "mdgf-exponential-2-4-r0.07", "bdwp-2-4"],
    "1-8": ["nmweight-1-8", "sr-ste-1-8", "mdgf-linear-1-8-r0.015", "mdgf-exponential-1-8-r0.07", "sdgf-stepwise-1-8"],
}
"""The recipes. A rate of 0.07 takes D to 0.01 in the 67 steps of the second phase, and 0.015 to 0."""
ITEMS, TOKENS = 64, 128
JOB = partial(Job, steps=96, batch=4, learning_rate=5e-4, evaluate_every=48, save_every=24)


def experiment() -> Experiment:
    """What is trained."""
    return Restore(load("minilm"), ITEMS, TOKENS)


def measure(names: Sequence[str], folder: Path, seeds: int, record: Path, trained: Experiment) -> None:
    """Train what the folder lacks, and write the record."""

    def stage(title: str, steps: int) -> object:
        print(title, flush=True)
        return lambda: None

    write_record(study(trained, names, range(seeds), JOB, folder, stage, swap=True), record)  # type: ignore[arg-type]


def table(name: str) -> str:
    """The table of a set, in Markdown."""
    path = RESULTS / f"training-{name}.json"
    if not path.exists():
        return "Not measured yet."
    found = Study.model_validate_json(path.read_text(encoding="utf-8"))
    seeds = f"{len(found.seeds)} seed{'s' * (len(found.seeds) > 1)}"
    said = f"{found.metric}; {found.summary}; {found.job['steps']} steps of {found.job['batch']}, {seeds}. "
    return f"{said}{briefly(found.machine)}.\n\n" + "\n".join(rows_of(found))


def main(arguments: list[str]) -> None:
    """Measure a set, or write the tables."""
    if arguments == ["table"]:
        page = PAGE.read_text(encoding="utf-8")
        for name in SETS:
            page = rewritten(page, START.format(name), table(name), END.format(name), "sparse_training")
        PAGE.write_text(page, encoding="utf-8")
    elif len(arguments) in (2, 3) and arguments[0] in SETS:
        torch.set_num_threads(1)
        seeds = int(arguments[2]) if arguments[2:] else 1
        record = RESULTS / f"training-{arguments[0]}.json"
        measure(SETS[arguments[0]], Path(arguments[1]), seeds, record, experiment())
    else:
        raise SystemExit(f"sparse_training: usage: sparse_training.py {'|'.join(SETS)} FOLDER [SEEDS], or table")


if __name__ == "__main__":
    main(sys.argv[1:])
