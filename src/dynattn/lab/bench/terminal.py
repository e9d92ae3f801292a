"""A record in a terminal: the table, what its columns mean, and what was wrong or disturbed."""

from __future__ import annotations

from rich.console import Console
from rich.text import Text

from dynattn.lab.bench.record import Record
from dynattn.lab.bench.table import cells, columns, limits, mistakes, note, warning
from dynattn.lab.terminal import Grid, print_grid, say


def show(record: Record, console: Console) -> None:
    """Print a record.

    Args:
        record: the record of a run.
        console: where to print.
    """
    print_grid(console, summary(record))
    say(console, limits(record.roofline))
    say(console, note(record), "dim")
    for function, reason in _refusals(record).items():
        say(console, f"{function} does not take some workloads: {reason}", "dim")
    for line in mistakes(record):
        say(console, line, "bold red")
    if warning(record):
        say(console, warning(record), "bold yellow")


def summary(record: Record) -> Grid:
    """One row a function, by workload."""
    shown = columns(record, short=True)
    rows: list[list[str | Text]] = []
    breaks = []
    for results in record.by_workload().values():
        for number, result in enumerate(results.values()):
            named = cells(record, result)
            row = [named[column] for column in shown]
            style = "bold red" if result.wrong else ""
            rows.append([Text("" if number else row[0]), *(Text(cell, style) for cell in row[1:])])
        breaks.append(len(rows) - 1)
    return Grid(f"dynattn bench: {record.suite}", shown, rows, keys=2, breaks=breaks)


def _refusals(record: Record) -> dict[str, str]:
    """For each peer that does not take some workload, why."""
    return {result.function: result.failed for result in record.results if result.failed}
