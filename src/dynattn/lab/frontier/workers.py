"""Cells in parallel processes of this machine, its threads divided among them."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from concurrent.futures import as_completed
from concurrent.futures.process import BrokenProcessPool

from dynattn.children import Pool
from dynattn.lab.frontier import measure
from dynattn.lab.frontier.cell import Cell
from dynattn.lab.frontier.measure import Answer, SweepJob


def run(job: SweepJob, cells: Sequence[Cell], workers: int, threads: int) -> Generator[Answer, None, None]:
    """Measure cells, several at a time.

    Args:
        job: the job of the sweep.
        cells: the cells, in the order in which they are begun; a worker keeps an exam's data for the next cell.
        workers: processes, started anew (spawned), so that none inherits threads or memory.
        threads: how many threads each worker uses.

    Yields:
        An answer for each cell, as they come.

    Raises:
        RuntimeError: a worker died, for want of memory as a rule.
    """
    try:
        with Pool(min(workers, len(cells)), measure.begin, (threads,)) as pool:
            for future in as_completed(pool.submit([(measure.measure, job, cell) for cell in cells])):
                yield future.result()
    except BrokenProcessPool as error:
        raise RuntimeError(
            "frontier: workers must live until they are done: one died, for want of memory as a rule; what was "
            "finished is written: run the command again with fewer --workers"
        ) from error
