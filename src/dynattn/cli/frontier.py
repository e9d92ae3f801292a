"""``dynattn frontier``: methods, budgets, tasks and lengths on one model; which method to take."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, cast

import typer

from dynattn.cli.options import Threads, listed


def frontier(
    records: Annotated[list[Path] | None, typer.Argument(help="With --merge: records to put together.")] = None,
    model: Annotated[
        str, typer.Option(help="minilm, smollm2, dinov2, whisper (packages carry these); or a folder or hub id.")
    ] = "minilm",
    methods: Annotated[
        str, typer.Option(help="Comma-separated short names. Default: every family, at each budget.")
    ] = "",
    budgets: Annotated[str, typer.Option(help="Shares of the pairs to keep, comma-separated.")] = "",
    tasks: Annotated[str, typer.Option(help="Comma-separated, as in dynattn compare. Default: those that fit.")] = "",
    tokens: Annotated[str, typer.Option(help="Lengths of the texts, comma-separated. Default: the model's.")] = "",
    items: Annotated[int | None, typer.Option(help="Items of each task.")] = None,
    phases: Annotated[str, typer.Option(help="prefill, decode, or both, comma-separated.")] = "prefill",
    text: Annotated[
        Path | None, typer.Option(help="Your own texts: a folder of .txt and .md files, or a file with one a line.")
    ] = None,
    seconds: Annotated[float, typer.Option(help="To time each method at each length; 0 times nothing.")] = 1.0,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes. Default: one a thread, 8 at most.")] = None,
    threads: Threads = None,
    ray: Annotated[bool, typer.Option("--ray", help="Measure quality on a Ray cluster.")] = False,
    merge: Annotated[bool, typer.Option("--merge", help="Put RECORDS of one model together; measure nothing.")] = False,
    output: Annotated[Path, typer.Option(help="Folder for the report and the JSON.")] = Path("reports"),
) -> None:
    """Compare sparse attention methods fairly on one model: quality against pairs kept, FLOPs and time.

    Run it again to go on where it was stopped.
    """
    if merge != bool(records):
        raise typer.BadParameter("--merge takes records to merge, as in: dynattn frontier --merge a.json b.json")
    try:
        import torch

        from dynattn.lab.frontier import terminal
    except ImportError as error:
        raise typer.BadParameter(f"frontier needs more packages ({error}): pip install 'dynattn[evals]'") from error
    if records:
        terminal.merge(records, output)
        return
    if threads is not None:
        torch.set_num_threads(threads)
    try:
        settings = terminal.Settings(
            model=model, methods=listed(methods), tasks=listed(tasks), items=items,
            phases=cast(Any, listed(phases)), text=text,
            seconds=seconds, tokens=tuple(int(length) for length in listed(tokens)),
            **({"budgets": tuple(float(budget) for budget in listed(budgets))} if budgets else {}),
        )  # fmt: skip
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    terminal.run(settings, output, workers, ray)
