"""``dynattn lra``: train a small transformer from scratch, with dense and with sparse attention, on long sequences."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dynattn.cli.options import MOST_BATCH, LearningRate, Runs, Seeds, Steps, Threads, TrainedMethods, counted, listed
from dynattn.cli.running import FAILED_CHECK, running


def lra(
    task: Annotated[str, typer.Option(help="listops, image, fashion or bytes.")] = "listops",
    size: Annotated[str, typer.Option(help="small (minutes on two cores) or published (a GPU's work).")] = "small",
    methods: TrainedMethods = "nm-1-2,nm-2-4",
    seeds: Seeds = 3,
    steps: Steps = None,
    batch: Annotated[
        int | None,
        typer.Option(
            help="Sequences a step, over all processes. Default: the task's.", callback=counted(most=MOST_BATCH)
        ),
    ] = None,
    learning_rate: LearningRate = None,
    threads: Threads = None,
    output: Runs = Path("reports"),
) -> None:
    """Train a small transformer from scratch on a task of the Long Range Arena's kind, dense and sparse, and compare.

    Run it again to go on where it was stopped. Ends with code 1 where the training of a method diverged.
    """
    with running("lra", "train"):
        from dynattn.lab.lra.command import run
        from dynattn.lab.lra.run import Settings
        from dynattn.lab.terminal import console

        settings = Settings(
            task=task, size=size, methods=listed(methods), seeds=seeds, steps=steps, batch=batch,
            learning_rate=learning_rate, threads=threads,
        )  # fmt: skip
        if not run(settings, output, console()):
            raise typer.Exit(FAILED_CHECK)
