"""``dynattn finetune``: train a pretrained model with dense and with sparse attention, and compare."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dynattn.cli.options import LearningRate, Runs, Seeds, Threads, TrainedMethods, listed


def finetune(
    model: Annotated[
        str,
        typer.Option(help="minilm, smollm2 (packages carry these); or a folder or hub id of a text model."),
    ] = "minilm",
    task: Annotated[
        str | None,
        typer.Option(help="restore, retrieval, manpages (encoders); perplexity (decoders). Default: the first fit."),
    ] = None,
    methods: TrainedMethods = "nm-2-4,nm-1-2",
    seeds: Seeds = 3,
    steps: Annotated[int | None, typer.Option(help="Of the optimizer. Default: the task's.")] = None,
    batch: Annotated[int | None, typer.Option(help="Examples a step, over all processes.")] = None,
    learning_rate: LearningRate = None,
    items: Annotated[int | None, typer.Option(help="Items held out to judge by.")] = None,
    tokens: Annotated[int | None, typer.Option(help="Tokens of each text.")] = None,
    text: Annotated[
        Path | None, typer.Option(help="Your own texts: a folder of .txt and .md files, or a file with one a line.")
    ] = None,
    keep_models: Annotated[bool, typer.Option("--keep-models", help="Write the trained models, too.")] = False,
    threads: Threads = None,
    output: Runs = Path("reports"),
) -> None:
    """Fine-tune a model with dense and with sparse attention by the same recipe; tell whether they end alike.

    Run it again to go on where it was stopped; start it by torchrun or accelerate launch to use several devices.
    """
    try:
        from dynattn.lab.finetune import present
        from dynattn.lab.finetune.finetune import Settings
        from dynattn.lab.finetune.finetune import finetune as train
    except ImportError as error:
        raise typer.BadParameter(f"finetune needs more packages ({error}): pip install 'dynattn[train]'") from error
    present(
        lambda stage: train(
            Settings(
                model=model, task=task, methods=listed(methods), seeds=seeds, steps=steps, batch=batch,
                learning_rate=learning_rate, items=items, tokens=tokens, text=text, keep_models=keep_models,
                threads=threads,
            ),
            output,
            stage,
        ),
        output,
        "finetune",
    )  # fmt: skip
