"""Actors fit the nodes of a cluster, and live as long as it is used."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace

import pytest

pytest.importorskip("transformers")
pytest.importorskip("pydantic")
pytest.importorskip("plotly")

from dynattn.lab.frontier import cluster
from dynattn.lab.frontier.cluster import Cluster


class _Ray(ModuleType):
    """Ray with nodes of so many CPUs; an actor that fits no node, for which Ray would wait for ever, is refused."""

    def __init__(self, nodes: list[float]) -> None:
        super().__init__("ray")
        self.free, self.alive, self.made, self.threads = nodes, 0, 0, set[int]()
        self.running = False
        self.util = ModuleType("ray.util")
        self.util.ActorPool = _Pool  # type: ignore[attr-defined]

    def is_initialized(self) -> bool:
        return self.running

    def init(self, **_) -> None:
        self.running = True

    def shutdown(self) -> None:
        self.running = False

    def nodes(self) -> list[dict]:
        gone = {"Alive": False, "Resources": {"CPU": 64.0}}
        return [gone, *({"Alive": True, "Resources": {"CPU": cpus} if cpus else {}} for cpus in self.free)]

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": sum(self.free)}

    def remote(self, num_cpus: int):
        def make(job, threads, directory, answer):
            node = next((i for i, cpus in enumerate(self.free) if cpus >= num_cpus), None)
            if node is None:
                raise TimeoutError(f"no node has {num_cpus} CPUs free: {self.free}")
            self.free[node] -= num_cpus
            self.alive, self.made = self.alive + 1, self.made + 1
            self.threads.add(threads)
            return SimpleNamespace(measure=SimpleNamespace(remote=lambda cell: answer(job, cell)))

        return lambda _: SimpleNamespace(remote=make)

    def kill(self, _) -> None:
        self.alive -= 1


class _Pool:
    def __init__(self, actors) -> None:
        self.actors = actors

    def map_unordered(self, call, cells):
        return [call(self.actors[i % len(self.actors)], cell) for i, cell in enumerate(cells)]


@pytest.fixture
def ray(monkeypatch):
    """Makes a cluster."""

    def make(*nodes: float) -> _Ray:
        made = _Ray(list(nodes))
        monkeypatch.setitem(sys.modules, "ray", made)
        monkeypatch.setitem(sys.modules, "ray.util", made.util)
        return made

    return make


@pytest.mark.parametrize(
    ("nodes", "workers", "actors", "cpus"),
    [
        ((4, 4), None, 8, 1),
        ((4, 4), 1, 1, 4),
        ((4, 4), 3, 3, 2),
        ((2, 8), 2, 2, 4),
        ((0, 6), 2, 2, 3),  # a head that computes nothing
        ((1, 1, 1), 2, 2, 1),
        ((3, 3), 5, 5, 1),
        ((2,), 9, 2, 1),
    ],
)
def test_every_actor_fits_a_node(nodes, workers, actors, cpus, ray):
    made = ray(*nodes)
    with Cluster("job", workers, lambda job, cell: (job, cell)) as found:
        assert found.at_once == actors
        assert sorted(found.measure(range(20))) == [("job", cell) for cell in range(20)]
        assert made.made == actors
        assert made.threads == {cpus}


def test_actors_live_until_the_end_and_no_more_are_made_than_there_are_cells(ray):
    made = ray(2, 2)
    with Cluster("job", None, lambda job, cell: cell) as found:
        assert list(found.measure([1])) == [1]
        assert made.made == 1
        assert sorted(found.measure([2, 3, 4])) == [2, 3, 4]
        assert list(found.measure([5])) == [5]
        assert made.made == made.alive == 3
    assert made.alive == 0
    assert not made.running


def test_a_cluster_that_was_there_before_stays(ray):
    made = ray(2)
    made.init()
    with Cluster("job", None):
        pass
    assert made.running


def test_a_sweep_ends_its_actors(ray, monkeypatch):
    made = ray(2, 2)
    monkeypatch.setattr(cluster.measure, "measure", None)
    monkeypatch.setattr(cluster.Cluster.__init__, "__defaults__", (lambda job, cell: cell, "frontier"))
    assert sorted(cluster.run("job", [1, 2, 3], None)) == [1, 2, 3]
    assert made.made == 3
    assert made.alive == 0
