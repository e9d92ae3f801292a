"""``dynattn frontier``: methods, budgets, tasks and lengths on one model; which method to take."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, cast

import typer

from dynattn.cli.options import (
    Dtype,
    Items,
    Model,
    Reports,
    Text,
    Threads,
    TrustRemoteCode,
    counted,
    listed,
    shares,
    timed,
    whole_numbers,
)
from dynattn.cli.running import FAILED_CHECK, running
from dynattn.lab.models.trust import trusting


def frontier(
    records: Annotated[
        list[Path] | None, typer.Argument(metavar="RECORDS", help="Records of --merge or --isoflops.")
    ] = None,
    model: Model = "minilm",
    methods: Annotated[
        str, typer.Option(help="Comma-separated short names. Default: every family, at each budget.")
    ] = "",
    budgets: Annotated[str, typer.Option(help="Shares of the pairs to keep, comma-separated.", callback=shares)] = "",
    measured: Annotated[
        bool, typer.Option("--measured", help="Find methods that keep the budgets as measured, not as asked.")
    ] = False,
    tasks: Annotated[str, typer.Option(help="Comma-separated, as in dynattn compare. Default: those that fit.")] = "",
    tokens: Annotated[
        str,
        typer.Option(help="Lengths of the texts, comma-separated. Default: the model's.", callback=whole_numbers),
    ] = "",
    items: Items = None,
    phases: Annotated[str, typer.Option(help="prefill, decode, or both, comma-separated.")] = "prefill",
    text: Text = None,
    seconds: Annotated[
        float,
        typer.Option(help="To time each method at each length; 0 times nothing.", callback=timed(zero=True)),
    ] = 1.0,
    workers: Annotated[
        int | None, typer.Option(help="Processes. Default: one a thread, 8 at most.", callback=counted(most=4096))
    ] = None,
    threads: Threads = None,
    dtype: Dtype = "float32",
    ray: Annotated[bool, typer.Option("--ray", help="Measure quality on a Ray cluster.")] = False,
    merge: Annotated[bool, typer.Option("--merge", help="Put RECORDS of one model together; measure nothing.")] = False,
    isoflops: Annotated[
        bool, typer.Option("--isoflops", help="Compare RECORDS of several sizes at equal cost; measure nothing.")
    ] = False,
    trust_remote_code: TrustRemoteCode = False,
    output: Reports = Path("reports"),
) -> None:
    """Compare sparse attention methods fairly on one model: quality against pairs kept, FLOPs and time.

    Run it again to go on where it was stopped. Ends with code 1 where something could not be measured, or where a
    method beats dense attention beyond chance, so that dense attention was measured wrongly.
    """
    if (merge and isoflops) or (merge or isoflops) != bool(records):
        raise typer.BadParameter(
            "--merge or --isoflops takes records, as in: dynattn frontier --merge a.json b.json; one of the two"
        )
    with running("frontier", "evals"), trusting(trust_remote_code):
        import torch

        from dynattn.lab.frontier import command
        from dynattn.lab.frontier.sweep import Settings
        from dynattn.lab.terminal import console

        if records and isoflops:
            command.isoflops(records, output, console())
            right = True
        elif records:
            right = command.merge(records, output, console())
        else:
            if threads is not None:
                torch.set_num_threads(threads)
            asked = tuple(float(budget) for budget in listed(budgets))
            settings = Settings(
                model=model, methods=listed(methods), tasks=listed(tasks), items=items,
                phases=cast(Any, listed(phases)), text=text, seconds=seconds, measured=measured,
                tokens=tuple(int(length) for length in listed(tokens)), budgets=asked or Settings.budgets, dtype=dtype,
            )  # fmt: skip
            right = command.run(settings, output, workers, ray, console())
        if not right:
            raise typer.Exit(FAILED_CHECK)
