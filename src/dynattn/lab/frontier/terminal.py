"""Prints a sweep: tables of methods and of limits for each phase, the choice in words, and what went wrong."""

from __future__ import annotations

from rich.console import Console
from rich.text import Text

from dynattn.lab.frontier.alarm import beating
from dynattn.lab.frontier.cell import Phase
from dynattn.lab.frontier.document import against_baselines, judged, sentences, share
from dynattn.lab.frontier.results import Frontier
from dynattn.lab.frontier.sections import left_out, limit_rows, unreached
from dynattn.lab.frontier.summary import contenders, phases
from dynattn.lab.terminal import Grid, print_grid, say

_STYLES = {"worse": "red", "better": "green"}


def show(found: Frontier, console: Console) -> None:
    """Print the tables of each phase, what follows from them, each alarm and each failure.

    Args:
        found: the record.
        console: where to print.
    """
    for phase in phases(found):
        print_grid(console, summary(found, phase))
        for line in sentences(contenders(found, phase)):
            say(console, line)
        columns, rows = limit_rows(found, phase)
        if rows:
            title = f"{phase}: largest sparsity not significantly worse than dense: what is retained there [95%]"
            print_grid(console, Grid(title, columns, rows))
        for line in [*left_out(found, phase), *unreached(found, phase)]:
            say(console, line)
    for wrong in beating(found):
        say(console, str(wrong), "red")
    for failure in found.failures.values():
        say(console, f"not measured: {failure.entry.name}, {failure.exam.title}: {failure.reason}", "red")


def summary(found: Frontier, phase: Phase) -> Grid:
    """One row a method and budget, the best first."""
    columns = [
        "method", "pairs", "FLOPs", "time", "quality retained\nin the worst exam [95%]",
        "quality retained\non average [95%]", "against\nbaselines",
    ]  # fmt: skip
    rows = []
    for contender in sorted(contenders(found, phase), key=lambda c: -c.worst.retained.mean):
        worst, mean = contender.worst.retained, contender.retained
        rows.append([
            contender.label,
            *("–" if x is None else f"{x:.0%}" for x in (contender.density, contender.flops, contender.time)),
            Text(share(worst), _STYLES.get(judged(worst), "")), Text(share(mean), _STYLES.get(judged(mean), "")),
            against_baselines(contender),
        ])  # fmt: skip
    return Grid(f"{found.model}, {phase}, in {found.dtype}: shares of dense attention's", columns, rows, left=(6,))
