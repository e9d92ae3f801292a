"""A sweep in a terminal: progress while it runs, then the frontier and where the report is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from dynattn.lab.finetune.terminal import stages
from dynattn.lab.frontier import cluster, store, workers
from dynattn.lab.frontier.cell import Phase
from dynattn.lab.frontier.document import against_baselines, judged, page, sentences, share
from dynattn.lab.frontier.results import Frontier
from dynattn.lab.frontier.summary import contenders, phases
from dynattn.lab.frontier.sweep import Runner, Settings, sweep
from dynattn.lab.records import slug

_MOST_WORKERS = 8  # each holds the model once
_STYLES = {"worse": "red", "better": "green"}


def run(settings: Settings, output: Path, processes: int | None, ray: bool, console: Console | None = None) -> None:
    """Sweep, print, and write ``frontier-<model>.html`` and ``.json``; go on with the record that is there.

    Args:
        settings: what to compare.
        output: folder, made if need be.
        processes: workers, among which torch's threads are divided; None for one a thread, eight at most, and on a
            cluster for one a CPU.
        ray: measure quality on a Ray cluster.
        console: where to print.

    Raises:
        typer.Exit: with code 2, after printing the reason, where a name or an option is wrong, or a package is
            missing; with 1 where something could not be measured.
    """
    console = console or Console()

    def work() -> Frontier:
        with stages(console) as stage:
            return sweep(settings, output / f"{_stem(settings.model)}.json", stage, _runner(processes, ray))

    _present(work, output, console)


def merge(records: Sequence[Path], output: Path, console: Console | None = None) -> None:
    """Write one record and its report from several of one model.

    Args:
        records: their files; one alone gets its report anew.
        output: folder of the merged ones, made if need be.
        console: where to print.

    Raises:
        typer.Exit: as :func:`run`.
    """
    console = console or Console()

    def work() -> Frontier:
        found = store.merge([store.load(record) for record in records])
        store.save(found, output / f"{_stem(found.model)}.json")
        return found

    _present(work, output, console)


def summary(found: Frontier, phase: Phase) -> Table:
    """One row a method and budget, the best first."""
    table = Table(title=f"{found.model}, {phase}: shares of dense attention's", title_justify="left", box=SIMPLE_HEAD)
    table.add_column("method", no_wrap=True)
    for name in ("pairs", "FLOPs", "time"):
        table.add_column(name, justify="right")
    for name in ("quality retained\nin the worst exam [95%]", "quality retained\non average [95%]"):
        table.add_column(name, justify="right")
    table.add_column("against\nbaselines")
    for contender in sorted(contenders(found, phase), key=lambda c: -c.worst.retained.mean):
        worst, mean = contender.worst.retained, contender.retained
        table.add_row(
            contender.label,
            *("–" if x is None else f"{x:.0%}" for x in (contender.density, contender.flops, contender.time)),
            Text(share(worst), _STYLES.get(judged(worst), "")), Text(share(mean), _STYLES.get(judged(mean), "")),
            against_baselines(contender),
        )  # fmt: skip
    return table


def _stem(model: str) -> str:
    return f"frontier-{slug(Path(model).name or model)}"


def _runner(processes: int | None, ray: bool) -> Runner:
    """Where cells are measured."""
    if ray:
        return lambda job, cells: cluster.run(job, cells, processes)
    threads = torch.get_num_threads()
    count = min(processes or min(threads, _MOST_WORKERS), threads)
    return lambda job, cells: workers.run(job, cells, count, threads // count)


def _present(work: Callable[[], Frontier], output: Path, console: Console) -> None:
    """Do the work, print it, and write its report."""
    try:
        found = work()
        html = page(found)
    except (ValueError, OSError, ImportError, RuntimeError) as error:
        console.print(f"[bold red]error[/]: {error}", highlight=False, soft_wrap=True)
        raise typer.Exit(2) from error
    path = output / f"{_stem(found.model)}.html"
    path.write_text(html, encoding="utf-8")
    for phase in phases(found):
        console.print(summary(found, phase))
        for line in sentences(contenders(found, phase)):
            console.print(line, highlight=False)
    for failure in found.failures.values():
        console.print(f"[red]not measured[/]: {failure.entry.name}, {failure.exam.title}: {failure.reason}")
    console.print(f"\nreport  {path}\nfigures {path.with_suffix('.json')}", highlight=False)
    if found.failures:
        raise typer.Exit(1)
