"""``dynattn finetune``: train a pretrained model with dense and with sparse attention, and compare."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dynattn.cli.options import (
    MOST_BATCH,
    LearningRate,
    Runs,
    Seeds,
    Steps,
    Text,
    Threads,
    Tokens,
    TrainedMethods,
    TrustRemoteCode,
    counted,
    listed,
    positive,
)
from dynattn.cli.running import FAILED_CHECK, running
from dynattn.lab.models.trust import trusting


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
    steps: Steps = None,
    batch: Annotated[
        int | None,
        typer.Option(
            help="Examples a step, over all processes. Default: the task's.", callback=counted(most=MOST_BATCH)
        ),
    ] = None,
    learning_rate: LearningRate = None,
    items: Annotated[int | None, typer.Option(help="Items held out to judge by.", callback=counted())] = None,
    tokens: Tokens = None,
    text: Text = None,
    density_loss: Annotated[
        float | None,
        typer.Option(help="Weight of a penalty on activations of MLPs that are not 0; 1 is usual.", callback=positive),
    ] = None,
    density_epsilon: Annotated[
        float | None,
        typer.Option(help="What counts as 0 for it: squares well below this. Default: 1e-7.", callback=positive),
    ] = None,
    keep_models: Annotated[bool, typer.Option("--keep-models", help="Write the trained models, too.")] = False,
    threads: Threads = None,
    trust_remote_code: TrustRemoteCode = False,
    output: Runs = Path("reports"),
) -> None:
    """Fine-tune a model with dense and with sparse attention by the same recipe; tell whether they end alike.

    Run it again to go on where it was stopped; start it by torchrun or accelerate launch to use several devices. Ends
    with code 1 where the training of a method diverged.
    """
    with running("finetune", "train", {"--tasks": "--task"}), trusting(trust_remote_code):
        from dynattn.lab.finetune.command import run
        from dynattn.lab.finetune.finetune import Settings
        from dynattn.lab.terminal import console

        settings = Settings(
            model=model, task=task, methods=listed(methods), seeds=seeds, steps=steps, batch=batch,
            learning_rate=learning_rate, items=items, tokens=tokens, text=text, density_loss=density_loss,
            density_epsilon=density_epsilon, keep_models=keep_models, threads=threads,
        )  # fmt: skip
        if not run(settings, output, console()):
            raise typer.Exit(FAILED_CHECK)
