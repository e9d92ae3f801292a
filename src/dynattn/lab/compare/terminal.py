"""A comparison in a terminal: progress while it runs, then a table and where the report is."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from dynattn.lab.compare import Comparison, Settings, compare
from dynattn.lab.compare.document import page
from dynattn.lab.data.packages import PackageUnavailableError
from dynattn.lab.figures import BASELINE
from dynattn.lab.tasks import DataMissingError
from dynattn.lab.words import interval, label, verdict


def run(settings: dict[str, Any], output: Path, console: Console | None = None) -> None:
    """Compare, print, and write ``compare-<model>.html`` and ``.json``.

    Args:
        settings: fields of :class:`dynattn.lab.compare.Settings`.
        output: folder, made if need be.
        console: where to print.

    Raises:
        typer.Exit: with code 2, after printing the reason, where a name or an option is wrong, or data or a package
            is missing.
    """
    console = console or Console()
    try:
        found = _compare(Settings(**settings), console)
    except (ValueError, OSError, ImportError, DataMissingError, PackageUnavailableError) as error:
        console.print(f"[bold red]error[/]: {error}", highlight=False, soft_wrap=True)
        raise typer.Exit(2) from error
    output.mkdir(parents=True, exist_ok=True)
    stem = "compare-" + re.sub(r"[^\w.-]+", "-", Path(found.model).name or found.model)
    (output / f"{stem}.json").write_text(found.model_dump_json(indent=1), encoding="utf-8")
    (output / f"{stem}.html").write_text(page(found), encoding="utf-8")
    console.print(summary(found))
    for line in notes(found):
        console.print(line, style="dim", highlight=False)
    console.print(f"\nreport  {output / f'{stem}.html'}\nfigures {output / f'{stem}.json'}", highlight=False)


def summary(found: Comparison) -> Table:
    """One row a method: speed-ups, quality, memory, density."""
    table = Table(title=f"{found.model}: {found.description}", title_justify="left")
    table.add_column("method")
    timings = {"attention": found.attention, "model": found.latency}
    if found.throughput:
        timings[f"batch {found.throughput.batch}"] = found.throughput
    for head in timings:
        table.add_column(head, justify="right")
    for task in found.tasks:
        table.add_column(f"{task.name}\n{task.metric}", justify="right")
        table.add_column("difference [95%]", justify="right")
    table.add_column("peak MiB", justify="right")
    table.add_column("kept\nmass", justify="right")
    memory = {entry.method: f"{entry.bytes / 2**20:.0f}" for entry in found.memory}
    mass = {
        entry.method: f"{sum(map(sum, entry.mass)) / sum(map(len, entry.mass)):.3f}" for entry in found.kept
    }  # fmt: skip
    styles = {"worse": "red", "better": "green"}
    for method in (BASELINE, *found.methods):
        speeds = [timed.of(method) for timed in timings.values()]
        cells: list[str | Text] = [
            label(method),
            *(f"{speed.speedup.median:.2f}×" if speed else "–" for speed in speeds),
        ]
        for task in found.tasks:
            result = task.of(method)
            style = styles.get(verdict(task, result), "default")
            cells += [f"{result.score:.4f}", Text(interval(result.difference), style)]
        table.add_row(*cells, memory.get(method, "–"), mass.get(method, "1"))
    return table


def notes(found: Comparison) -> list[str]:
    """What the table's columns mean."""
    share = next((s for s in found.shares if s.method == BASELINE), None)
    lines = [f"{task.name}: {task.data}" for task in found.tasks]
    lines.append("× : speed-up over SDPA in the same run, median; difference: paired, bootstrap; colour: leaves 0 out")
    if share is not None:
        lines.append(f"attention takes {share.attention / share.forward:.0%} of the dense forward, batch 1")
    return lines


def _compare(settings: Settings, console: Console) -> Comparison:
    _quiet_transformers()
    columns = (TextColumn("{task.description:<32}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:

        def stage(title: str, steps: int) -> Callable[[], None]:
            bar = progress.add_task(title, total=steps)
            return lambda: progress.advance(bar)

        return compare(settings, stage)


def _quiet_transformers() -> None:
    """Transformers' own bars would break ours."""
    from transformers.utils import logging

    logging.disable_progress_bar()
