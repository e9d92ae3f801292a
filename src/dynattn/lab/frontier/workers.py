"""Cells in parallel processes of this machine, its threads divided among them."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool

from dynattn.lab.frontier import measure
from dynattn.lab.frontier.cell import Cell
from dynattn.lab.frontier.measure import Answer, Job


def run(job: Job, cells: Sequence[Cell], workers: int, threads: int) -> Iterator[Answer]:
    """Measure cells, several at a time.

    Args:
        job: of the sweep.
        cells: in the order in which they are begun; a worker keeps an exam's data for the next cell.
        workers: processes, started anew (spawned), so that none inherits threads or memory.
        threads: of each.

    Yields:
        An answer for each cell, as they come.

    Raises:
        RuntimeError: a worker died, for want of memory as a rule.
    """
    pool = ProcessPoolExecutor(
        min(workers, len(cells)), multiprocessing.get_context("spawn"), initializer=_begin, initargs=(threads,)
    )
    try:
        for future in as_completed([pool.submit(measure.measure, job, cell) for cell in cells]):
            yield future.result()
    except BrokenProcessPool as error:
        raise RuntimeError(
            "frontier: workers must live until they are done: one died, for want of memory as a rule; what was "
            "finished is written: run the command again with fewer --workers"
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _begin(threads: int) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    measure.begin(threads)


def _end_with_parent() -> None:
    """Else a worker whose sweep was killed would wait for its next cell for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
