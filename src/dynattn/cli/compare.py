"""``dynattn compare``: what sparse attention gains and costs, on a real model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dynattn.cli.options import Threads, listed


def compare(
    model: Annotated[
        str, typer.Option(help="minilm, smollm2, dinov2, whisper (packages carry these); or a folder or hub id.")
    ] = "minilm",
    methods: Annotated[
        str,
        typer.Option(help="Comma-separated, as in nm-1-2,nm-2-4. Default: dense, 2:4, 1:2, 1:2 of stride 16."),
    ] = "",
    tasks: Annotated[
        str,
        typer.Option(
            help="Comma-separated: retrieval, manpages (encoders); perplexity, passkey, needle, "
            "multi-needle, variables, common-words (decoders); saliency, features (vision); speech. Default: those "
            "that fit the model."
        ),
    ] = "",
    text: Annotated[
        Path | None, typer.Option(help="Your own texts: a folder of .txt and .md files, or a file with one a line.")
    ] = None,
    items: Annotated[
        int | None, typer.Option(help="Items of each task: passages, pages, texts, keys, pictures.")
    ] = None,
    tokens: Annotated[int | None, typer.Option(help="Tokens of each text.")] = None,
    batch: Annotated[
        int | None,
        typer.Option(help="Items at once where throughput and memory are measured; default: 2048 tokens' worth."),
    ] = None,
    seconds: Annotated[float, typer.Option(help="To spend on each of the three timings.")] = 10.0,
    threads: Threads = None,
    output: Annotated[Path, typer.Option(help="Folder for the report and the JSON.")] = Path("reports"),
) -> None:
    """Compare a model under dense attention with the same model under sparse attention: quality, speed, memory."""
    try:
        from dynattn.lab.compare.terminal import run
    except ImportError as error:
        raise typer.BadParameter(f"compare needs more packages ({error}): pip install 'dynattn[evals]'") from error
    run(
        {
            "model": model,
            "methods": listed(methods),
            "tasks": listed(tasks),
            "text": text, "items": items, "tokens": tokens, "batch": batch, "seconds": seconds, "threads": threads,
        },
        output,
    )  # fmt: skip
