"""``dynattn finetune``: train a pretrained model with dense and with sparse attention, and compare."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def finetune(
    model: Annotated[
        str,
        typer.Option(help="minilm, smollm2 (packages carry these); or a folder or hub id of a text model."),
    ] = "minilm",
    task: Annotated[
        str | None,
        typer.Option(help="retrieval, manpages (encoders); perplexity (decoders). Default: the first that fits."),
    ] = None,
    methods: Annotated[
        str, typer.Option(help="Comma-separated, as in nm-1-2,nm-2-4; dense attention is always trained beside them.")
    ] = "nm-2-4,nm-1-2",
    seeds: Annotated[int, typer.Option(help="Runs of each method; 3 or more for intervals that hold for others.")] = 3,
    steps: Annotated[int | None, typer.Option(help="Of the optimizer. Default: the task's.")] = None,
    batch: Annotated[int | None, typer.Option(help="Examples a step, over all processes.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="At its highest.")] = None,
    items: Annotated[int | None, typer.Option(help="Items held out to judge by.")] = None,
    tokens: Annotated[int | None, typer.Option(help="Tokens of each text.")] = None,
    text: Annotated[
        Path | None, typer.Option(help="Your own texts: a folder of .txt and .md files, or a file with one a line.")
    ] = None,
    keep_models: Annotated[bool, typer.Option("--keep-models", help="Write the trained models, too.")] = False,
    threads: Annotated[int | None, typer.Option(help="Of PyTorch; default: as it is set.")] = None,
    output: Annotated[Path, typer.Option(help="Folder for the report, the JSON and the runs.")] = Path("reports"),
) -> None:
    """Fine-tune a model with dense and with sparse attention by the same recipe; tell whether they end alike.

    Run it again to go on where it was stopped; start it by torchrun or accelerate launch to use several devices.
    """
    try:
        from dynattn.evals.training.finetune import Settings
        from dynattn.evals.training.finetune import finetune as train
        from dynattn.report.finetune import present
    except ImportError as error:
        raise typer.BadParameter(f"finetune needs more packages ({error}): pip install 'dynattn[train]'") from error
    named = tuple(name.strip() for name in methods.split(",") if name.strip())
    present(
        lambda stage: train(
            Settings(
                model=model, task=task, methods=named, seeds=seeds, steps=steps, batch=batch,
                learning_rate=learning_rate, items=items, tokens=tokens, text=text, keep_models=keep_models,
                threads=threads,
            ),
            output,
            stage,
        ),
        output,
        "finetune",
    )  # fmt: skip
