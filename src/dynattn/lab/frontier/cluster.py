"""Measures cells on a Ray cluster, with an actor for each worker, which holds the model for all its cells.

Source: Ray, "A Distributed Framework for Emerging AI Applications", arXiv:1712.05889; https://docs.ray.io.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Generator, Iterator, Sequence
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


def _fitting(nodes: Sequence[int], count: int) -> int:
    """The most CPUs that each of so many actors can have; an actor lies on one node, whatever others have free.

    Args:
        nodes: the CPUs of each node.
        count: actors, no more than there are CPUs.
    """
    return next(each for each in range(max(nodes), 0, -1) if each == 1 or sum(cpus // each for cpus in nodes) >= count)


class Cluster:
    """The cluster that Ray finds (``RAY_ADDRESS``, or one on this machine), else one of its own.

    Actors are made as they are needed and hold the model until the end of the ``with``; what is timed afterwards runs
    alone. dynattn and the packages that carry models and data have to be installed on every node.

    Args:
        job: what all cells share.
        workers: actors, among which the cluster's CPUs are divided; None for one a CPU.
        answer: measures a cell of a job.
        command: named in the error.

    Attributes:
        at_once: how many cells are measured at the same time.

    Raises:
        ImportError: ray is not installed.
    """

    def __init__(
        self, job: Any, workers: int | None, answer: Callable[[Any, Any], Any] = measure.measure,
        command: str = "frontier",
    ) -> None:  # fmt: skip
        try:
            import ray
        except ImportError as error:
            raise ImportError(f"{command}: --ray needs Ray: pip install 'dynattn[ray]'") from error
        self._ray, self._job, self._answer = ray, job, answer
        self._actors: list[Any] = []
        self._ours = not ray.is_initialized()
        if self._ours:
            with safe_start(elsewhere=True):  # else Ray puts the current directory in front of its workers' imports
                ray.init(log_to_driver=False, logging_level=logging.WARNING)
        alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        nodes = [cpus for resources in alive if (cpus := int(resources.get("CPU", 0))) > 0] or [1]
        self.at_once = min(workers or sum(nodes), sum(nodes))
        self._cpus = _fitting(nodes, self.at_once)

    def __enter__(self) -> Cluster:
        return self

    def __exit__(self, *error: Any) -> None:
        for each in self._actors:
            self._ray.kill(each)
        self._actors = []
        if self._ours:
            self._ray.shutdown()

    def measure(self, cells: Sequence[Any]) -> Iterator[Any]:
        """An answer for each cell, as they come.

        Args:
            cells: the cells, in the order in which they are begun.
        """
        from ray.util import ActorPool

        actor: Any = self._ray.remote(num_cpus=self._cpus)(_Worker)
        while len(self._actors) < min(self.at_once, len(cells)):
            self._actors.append(actor.remote(self._job, self._cpus, os.getcwd(), self._answer))
        pool: Any = ActorPool(self._actors)
        yield from pool.map_unordered(lambda worker, cell: worker.measure.remote(cell), list(cells))


def run(job: Any, cells: Sequence[Any], workers: int | None) -> Generator[Any, None, None]:
    """Measure cells of a sweep on a :class:`Cluster`.

    Args:
        job: the job of the sweep.
        cells: the cells, in the order in which they are begun.
        workers: as there.

    Yields:
        An answer for each cell, as they come.

    Raises:
        ImportError: ray is not installed.
    """
    with Cluster(job, workers) as cluster:
        yield from cluster.measure(cells)
