"""A comparison in a terminal: its table, and what the table's columns mean."""

from __future__ import annotations

from rich.console import Console
from rich.text import Text

from dynattn.lab.compare.results import Comparison
from dynattn.lab.figures import BASELINE, Quality, TaskResult
from dynattn.lab.terminal import Grid, print_grid, say
from dynattn.lab.words import interval, label, verdict

_STYLES = {"worse": "red", "better": "green"}


def show(found: Comparison, console: Console) -> None:
    """Print the table and its notes.

    Args:
        found: the comparison.
        console: where to print.
    """
    print_grid(console, summary(found))
    for line in notes(found):
        say(console, line, "dim")


def summary(found: Comparison) -> Grid:
    """One row a method: speed-ups, quality, memory, density."""
    timings = {"attention": found.attention, "model": found.latency}
    if found.throughput:
        timings[f"batch {found.throughput.batch}"] = found.throughput
    columns = ["method", *timings]
    for task in found.tasks:
        columns += [f"{task.name}\n{task.metric}", f"{task.name}\nless dense [95%]"]
    columns += ["peak\nMiB", "kept\nmass"]
    memory = {entry.method: f"{entry.bytes / 2**20:.0f}" for entry in found.memory}
    mass = {entry.method: f"{sum(map(sum, entry.mass)) / sum(map(len, entry.mass)):.3f}" for entry in found.kept}
    rows = []
    for method in (BASELINE, *found.methods):
        speeds = [timed.of(method) for timed in timings.values()]
        row: list[str | Text] = [label(method), *(f"{speed.speedup.median:.2f}×" if speed else "–" for speed in speeds)]
        for task in found.tasks:
            result = task.of(method)
            row += [f"{result.score:.4f}", _difference(task, result)]
        rows.append([*row, memory.get(method, "–"), mass.get(method, "1")])
    return Grid(f"{found.model}: {found.description}, in {found.dtype}", columns, rows)


def notes(found: Comparison) -> list[str]:
    """What the table's columns mean."""
    share = next((s for s in found.shares if s.method == BASELINE), None)
    lines = [f"{task.name}: {task.data}" for task in found.tasks]
    lines.append(
        "×: speed-up over SDPA in the same run, median; less dense: the difference to dense attention, paired, "
        "bootstrap; coloured where its interval leaves 0 out"
    )
    if share is not None:
        lines.append(f"attention takes {share.attention / share.forward:.0%} of the dense forward, batch 1")
    return lines


def _difference(task: TaskResult, result: Quality) -> Text:
    return Text(interval(result.difference), _STYLES.get(verdict(task, result), ""))
