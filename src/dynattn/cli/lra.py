"""``dynattn lra``: train a small transformer from scratch, with dense and with sparse attention, on long sequences."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dynattn.cli.options import LearningRate, Runs, Seeds, Threads, TrainedMethods, listed


def lra(
    task: Annotated[str, typer.Option(help="listops, image, fashion or bytes.")] = "listops",
    size: Annotated[str, typer.Option(help="small (minutes on two cores) or published (a GPU's work).")] = "small",
    methods: TrainedMethods = "nm-1-2,nm-2-4",
    seeds: Seeds = 3,
    steps: Annotated[int | None, typer.Option(help="Of the optimizer. Default, here and below: the task's.")] = None,
    batch: Annotated[int | None, typer.Option(help="Sequences a step, over all processes.")] = None,
    learning_rate: LearningRate = None,
    threads: Threads = None,
    output: Runs = Path("reports"),
) -> None:
    """Train a small transformer from scratch on a task of the Long Range Arena's kind, dense and sparse, and compare.

    Run it again to go on where it was stopped.
    """
    try:
        from dynattn.lab.finetune import present
        from dynattn.lab.lra.run import Settings, lra
    except ImportError as error:
        raise typer.BadParameter(f"lra needs more packages ({error}): pip install 'dynattn[train]'") from error
    present(
        lambda stage: lra(
            Settings(
                task=task, size=size, methods=listed(methods), seeds=seeds, steps=steps, batch=batch,
                learning_rate=learning_rate, threads=threads,
            ),
            output,
            stage,
        ),
        output,
        "lra",
    )  # fmt: skip
