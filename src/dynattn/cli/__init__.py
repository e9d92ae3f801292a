"""The ``dynattn`` command: one file a subcommand."""

from __future__ import annotations

import typer

from dynattn.cli.bench import bench
from dynattn.cli.compare import compare
from dynattn.cli.finetune import finetune
from dynattn.cli.frontier import frontier
from dynattn.cli.inspect import inspect
from dynattn.cli.lra import lra
from dynattn.cli.warmup import warmup

app = typer.Typer(
    name="dynattn",
    help="Dynamic sparse attention: compare it with dense attention on real models, train, bench, look inside.",
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,
)
app.command()(compare)
app.command()(bench)
app.command()(inspect)
app.command()(finetune)
app.command()(frontier)
app.command()(lra)
app.command()(warmup)
