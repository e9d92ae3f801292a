"""``dynattn compare``: what sparse attention gains and costs, on a real model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dynattn.cli.options import (
    MOST_BATCH,
    Dtype,
    Items,
    Model,
    Reports,
    Text,
    Threads,
    Tokens,
    TrustRemoteCode,
    counted,
    listed,
    timed,
)
from dynattn.cli.running import running
from dynattn.lab.models.trust import trusting


def compare(
    model: Model = "minilm",
    methods: Annotated[
        str,
        typer.Option(help="Comma-separated, as in nm-1-2,nm-2-4. Default: dense, 2:4, 1:2, 1:2 of stride 16."),
    ] = "",
    tasks: Annotated[
        str,
        typer.Option(
            help="Comma-separated: retrieval, manpages (encoders); perplexity, passkey, needle, "
            "multi-needle, variables, common-words, ruler-needles, ruler-variables, ruler-common-words, "
            "ruler-frequent-words, story-retrieval, story-multi-hop, story-filtering (decoders); saliency, features "
            "(vision); speech. Default: those that fit the model."
        ),
    ] = "",
    text: Text = None,
    items: Items = None,
    tokens: Tokens = None,
    batch: Annotated[
        int | None,
        typer.Option(
            help="Items at once where throughput and memory are measured. Default: 2048 tokens' worth.",
            callback=counted(most=MOST_BATCH),
        ),
    ] = None,
    seconds: Annotated[float, typer.Option(help="To spend on each of the three timings.", callback=timed())] = 10.0,
    threads: Threads = None,
    dtype: Dtype = "float32",
    trust_remote_code: TrustRemoteCode = False,
    output: Reports = Path("reports"),
) -> None:
    """Compare a model under dense attention with the same model under sparse attention: quality, speed, memory."""
    with running("compare", "evals"), trusting(trust_remote_code):
        from dynattn.lab.compare.command import run
        from dynattn.lab.compare.run import Settings
        from dynattn.lab.terminal import console

        settings = Settings(
            model=model, methods=listed(methods), tasks=listed(tasks), text=text, items=items, tokens=tokens,
            batch=batch, seconds=seconds, threads=threads, dtype=dtype,
        )  # fmt: skip
        run(settings, output, console())
