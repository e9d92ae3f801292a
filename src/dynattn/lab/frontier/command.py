"""What ``dynattn frontier`` does: sweep with progress, merge records, or compare sizes; write the report, and print."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console

from dynattn.lab.frontier import cluster, sizes, store, workers
from dynattn.lab.frontier.alarm import beating
from dynattn.lab.frontier.document import page
from dynattn.lab.frontier.results import Frontier
from dynattn.lab.frontier.stages import Runner
from dynattn.lab.frontier.sweep import Settings, sweep
from dynattn.lab.frontier.terminal import show
from dynattn.lab.records import reserve, write_whole
from dynattn.lab.reports import files, shown
from dynattn.lab.terminal import quiet_transformers, stages

_MOST_WORKERS = 8  # each worker holds the model once


def run(settings: Settings, output: Path, processes: int | None, ray: bool, console: Console) -> bool:
    """Sweep, write ``frontier-<model>.html`` and ``.json``, and print; go on with the record that is there.

    Args:
        settings: what to compare.
        output: folder, made if need be.
        processes: workers, among which torch's threads are divided; None for one a thread, eight at most, and on a
            cluster for one a CPU.
        ray: measure quality on a Ray cluster.
        console: where to print.

    Returns:
        False where something could not be measured, or a method beats dense attention beyond chance.

    Raises:
        ValueError, OSError, ImportError, RuntimeError: a name or an option is wrong, data or a package is missing, a
            worker died, or a file cannot be written.
    """
    report, record = files("frontier", Path(settings.model).name or settings.model, output)
    with reserve(report):
        quiet_transformers()
        with stages(console) as stage:
            found = sweep(settings, record, stage, _runner(processes, ray))
        return _present(found, report, record, console)


def merge(records: Sequence[Path], output: Path, console: Console) -> bool:
    """Write one record and its report from several of one model.

    Args:
        records: their files; one alone gets its report anew.
        output: folder of the merged ones, made if need be.
        console: where to print.

    Returns:
        As :func:`run`.

    Raises:
        ValueError, OSError: a file is no record, the records do not fit, or a file cannot be written.
    """
    found = store.merge([store.load(record) for record in records])
    report, record = files("frontier", Path(found.model).name or found.model, output)
    with reserve(report):
        store.save(found, record)
        return _present(found, report, record, console)


def isoflops(records: Sequence[Path], output: Path, console: Console) -> None:
    """Write and print which size of a model, and how sparse, is best at which budget; measure nothing.

    Args:
        records: the files of at least two models.
        output: folder of the page, made if need be.
        console: where to print.

    Raises:
        ValueError, OSError: a file is no record, there are fewer than two models, an exam asks them other items, or the
            page cannot be written.
    """
    loaded = [store.load(record) for record in records]
    found = sizes.compared(loaded)
    report, _ = files("isoflops", "-".join(sizes.titled(found).values()), output)
    with reserve(report), shown(lambda: sizes.show(found, console), console, report):
        write_whole(report, sizes.page(found, loaded))


def _runner(processes: int | None, ray: bool) -> Runner:
    """Where cells are measured."""
    if ray:
        return lambda job, cells: cluster.run(job, cells, processes)
    threads = torch.get_num_threads()
    count = min(processes or min(threads, _MOST_WORKERS), threads)
    return lambda job, cells: workers.run(job, cells, count, threads // count)


def _present(found: Frontier, report: Path, record: Path, console: Console) -> bool:
    with shown(lambda: show(found, console), console, report, record):
        write_whole(report, page(found))
    return not found.failures and not beating(found)
