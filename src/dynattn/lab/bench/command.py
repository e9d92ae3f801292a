"""What ``dynattn bench`` does: run a suite with progress, print the table, write the record and the page."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from dynattn.lab.bench import cuda
from dynattn.lab.bench.cases import Case, Workload
from dynattn.lab.bench.page import page
from dynattn.lab.bench.record import Record, save
from dynattn.lab.bench.roofline import roofline
from dynattn.lab.bench.run import by_workload, measure
from dynattn.lab.bench.suites import suite
from dynattn.lab.bench.table import cells, columns, limits, mistakes, note, warning
from dynattn.lab.machine import describe, machine
from dynattn.methods import NM, parse

_DEVICES = ("cpu", "cuda")


def cases(name: str, methods: list[str], device: str = "cpu") -> tuple[Case, ...]:
    """The cases of a suite.

    Args:
        name: of the suite.
        methods: short names, instead of the suite's own; empty for those.
        device: ``cpu`` or ``cuda``; it decides the suite's shapes.

    Raises:
        ValueError: no such suite, method or device; or nothing can run on the device here.
    """
    if device not in _DEVICES:
        raise ValueError(f"bench: device must be one of {', '.join(_DEVICES)}: got {device!r}")
    reason = cuda.unavailable_reason() if device == "cuda" else None
    if reason is not None:
        raise ValueError(f"bench: device must be one that can run here: got {device!r}, and {reason}")
    if not methods:
        return suite(name, device)
    chosen = [_nm(method.strip()) for method in methods]
    return tuple(Case(workload, method) for workload in by_workload(suite(name, device)) for method in chosen)


def run_command(
    name: str,
    cases: tuple[Case, ...],
    *,
    device: str,
    threads: int,
    seconds: float,
    rounds: int | None,
    backend: str,
    output: Path,
    report: Path,
) -> bool:
    """Run, show and write.

    Args:
        name: of the suite, for the titles.
        cases: what to run.
        device: ``cpu`` or ``cuda``.
        threads: for torch and the kernels; 0 leaves torch's setting.
        seconds, rounds: for each workload, as :func:`dynattn.lab.timing.interleaved` takes them.
        backend: as :func:`dynattn.attention` takes it.
        output: JSON file.
        report: HTML file.

    Returns:
        False where a result was wrong.
    """
    console = Console(highlight=False, markup=False, emoji=False)  # "N:M:" is no emoji
    with _threads(threads):
        record = _run(name, by_workload(cases), device, seconds, rounds, backend, console)
    save(record, output)
    report.parent.mkdir(parents=True, exist_ok=True)
    report.write_text(page(record), encoding="utf-8")
    console.print(_table(record))
    console.print(limits(record.roofline))
    console.print(note(record), style="dim")
    for function, reason in _refusals(record).items():
        console.print(f"{function} does not take some workloads: {reason}", style="dim")
    for line in mistakes(record):
        console.print(line, style="bold red")
    if warning(record):
        console.print(warning(record), style="bold yellow")
    console.print(f"written: {output}, {report}")
    return not any(result.wrong for result in record.results)


def _nm(name: str) -> NM:
    method = parse(name)
    if not isinstance(method, NM):
        raise ValueError(f"bench: methods must be N:M methods: got {name!r}")
    return method


def _run(
    name: str, groups: dict[Workload, list[NM]], device: str, seconds: float, rounds: int | None, backend: str,
    console: Console,
) -> Record:  # fmt: skip
    here = machine(device)
    console.print(describe(here))
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    # redrawn between rounds alone: a thread that redraws by itself would take a core from the samples
    with Progress(*columns, console=console, transient=True, auto_refresh=False) as progress:
        task = progress.add_task("", total=len(groups))

        def show(what: str, advance: int = 0) -> None:
            progress.update(task, description=what, advance=advance, refresh=True)

        show("machine's limits")
        limit = roofline(device=device)
        results = []
        for workload, methods in groups.items():
            show(f"{workload.label}: checking")
            results += measure(
                workload, methods, device=device, backend=backend, seconds=seconds, rounds=rounds,
                on_round=lambda taken, label=workload.label: show(f"{label}: round {taken}"),
            )  # fmt: skip
            show(workload.label, advance=1)
        limit = limit.or_higher(roofline(device=device))
    return Record(name, here, limit, tuple(results))


def _table(record: Record) -> Table:
    table = Table(title=f"dynattn bench: {record.suite}", box=box.SIMPLE, padding=0, show_edge=False)  # 80 columns
    shown = columns(record, short=True)
    for column in shown:
        left = column in shown[:2]
        table.add_column(column, justify="left" if left else "right", no_wrap=True)
    for results in record.by_workload().values():
        for i, result in enumerate(results.values()):
            named = cells(record, result)
            row = [named[column] for column in shown]
            style = "bold red" if result.wrong else None
            table.add_row("" if i else row[0], *row[1:], style=style)
        table.add_section()
    return table


def _refusals(record: Record) -> dict[str, str]:
    """For each peer that does not take some workload, why."""
    return {result.function: result.failed for result in record.results if result.failed}


@contextmanager
def _threads(threads: int) -> Iterator[None]:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads or before)
        yield
    finally:
        torch.set_num_threads(before)
