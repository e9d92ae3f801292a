"""Measures cells on a Ray cluster, with an actor for each worker, which holds the model for all its cells.

Source: Ray, "A Distributed Framework for Emerging AI Applications", arXiv:1712.05889; https://docs.ray.io.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Generator, Sequence
from contextlib import suppress
from typing import Any

from dynattn.children import safe_start
from dynattn.lab.frontier import measure


class _Worker:
    def __init__(self, job: Any, threads: int, directory: str, answer: Callable[[Any, Any], Any]) -> None:
        with suppress(OSError):  # another machine may not have it
            os.chdir(directory)
        measure.begin(threads)
        self._job, self._answer = job, answer

    def measure(self, cell: Any) -> Any:
        return self._answer(self._job, cell)


def run(
    job: Any, cells: Sequence[Any], workers: int | None, answer: Callable[[Any, Any], Any] = measure.measure,
    command: str = "frontier",
) -> Generator[Any, None, None]:  # fmt: skip
    """Measure cells on the cluster that Ray finds (``RAY_ADDRESS``, or one on this machine), else on one of its own.

    dynattn and the packages that carry models and data have to be installed on every node.

    Args:
        job: the job of the sweep.
        cells: the cells, in the order in which they are begun.
        workers: actors, among which the cluster's CPUs are divided; None for one a CPU.
        answer: measures a cell of a job.
        command: named in the error.

    Yields:
        An answer for each cell, as they come.

    Raises:
        ImportError: ray is not installed.
    """
    try:
        import ray
        from ray.util import ActorPool
    except ImportError as error:
        raise ImportError(f"{command}: --ray needs Ray: pip install 'dynattn[ray]'") from error
    ours = not ray.is_initialized()
    if ours:
        with safe_start(elsewhere=True):  # else Ray puts the current directory in front of its workers' imports
            ray.init(log_to_driver=False, logging_level=logging.WARNING)
    try:
        cpus = max(1, int(ray.cluster_resources().get("CPU", 1)))
        count = min(workers or cpus, cpus)
        actor: Any = ray.remote(num_cpus=cpus // count)(_Worker)
        actors = [actor.remote(job, cpus // count, os.getcwd(), answer) for _ in range(min(count, len(cells)))]
        pool: Any = ActorPool(actors)
        yield from pool.map_unordered(lambda worker, cell: worker.measure.remote(cell), list(cells))
        for each in actors:  # they are ended, so that what is timed next runs alone
            ray.kill(each)
    finally:
        if ours:
            ray.shutdown()
