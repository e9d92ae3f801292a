"""``dynattn prune``: remove layers, heads and neurons of a model as long as it does not suffer."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, cast

import typer

from dynattn.cli.options import Items, Model, Reports, Text, Threads, Tokens, TrustRemoteCode
from dynattn.cli.running import running
from dynattn.lab.models.trust import trusting


def prune(
    model: Model = "minilm",
    task: Annotated[
        str | None, typer.Option(help="One task, as in dynattn compare. Default: the first that fits.")
    ] = None,
    tolerance: Annotated[float, typer.Option(help="The share of quality that may be lost.")] = 0.05,
    order: Annotated[str, typer.Option(help="greedy: later layers first; gradient-flow: the least flow first.")] = (
        "greedy"
    ),
    first: Annotated[str, typer.Option(help="attention (for speed) or mlp (for size), where the order is greedy.")] = (
        "attention"
    ),
    blocks_only: Annotated[bool, typer.Option("--blocks-only", help="Remove whole blocks, no heads or neurons.")] = (
        False
    ),
    hard: Annotated[bool, typer.Option("--hard", help="Also try top-k attention, layer by layer.")] = False,
    items: Items = None,
    tokens: Tokens = None,
    text: Text = None,
    threads: Threads = None,
    trust_remote_code: TrustRemoteCode = False,
    output: Reports = Path("reports"),
) -> None:
    """Remove parts of a model as long as its validation items do not suffer; tell what held-out items say.

    Writes a model that Transformers loads, or a setting that makes the original into it. Run it again to go on where it
    was stopped.
    """
    with running("prune", "evals", {"--tasks": "--task"}), trusting(trust_remote_code):
        import torch

        from dynattn.lab.prune.command import run
        from dynattn.lab.prune.settings import Settings
        from dynattn.lab.terminal import console

        if threads is not None:
            torch.set_num_threads(threads)
        settings = Settings(
            model=model, task=task, items=items, tokens=tokens, text=text, tolerance=tolerance,
            order=cast(Any, order), first=cast(Any, first), hard=hard, blocks_only=blocks_only,
        )  # fmt: skip
        run(settings, output, console())
