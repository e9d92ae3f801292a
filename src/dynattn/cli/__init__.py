"""The ``dynattn`` command: one file a subcommand, which parses options and calls ``lab/<subcommand>/command.py``."""

from __future__ import annotations

import sys
from typing import Any

import typer
from typer.core import TyperGroup

from dynattn.cli.bench import bench
from dynattn.cli.compare import compare
from dynattn.cli.finetune import finetune
from dynattn.cli.frontier import frontier
from dynattn.cli.inspect import inspect
from dynattn.cli.lra import lra
from dynattn.cli.prune import prune
from dynattn.cli.run import run
from dynattn.cli.tune import tune
from dynattn.cli.warmup import warmup
from dynattn.lab.terminal import spell_out


class _Commands(TyperGroup):
    """A group of commands whose help and errors can be written in any encoding, like what the commands print."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        spell_out(sys.stdout, sys.stderr)
        return super().main(*args, **kwargs)


app = typer.Typer(
    name="dynattn",
    cls=_Commands,
    help="Dynamic sparse attention: compare it with dense attention on real models, train, bench, look inside.",
    no_args_is_help=True,
    rich_markup_mode=None,  # the brackets in an error, for example in a path, are not markup
    pretty_exceptions_enable=False,
)
app.command()(tune)
app.command()(compare)
app.command()(bench)
app.command()(inspect)
app.command()(finetune)
app.command()(frontier)
app.command()(lra)
app.command()(prune)
app.command()(warmup)
# Options behind the program's name are the program's.
app.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})(run)
