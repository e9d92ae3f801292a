"""What is measured ahead is what the run would have found, by whomever it is measured."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import pytest

pytest.importorskip("transformers")

from dynattn.lab.tasks.texts import read
from dynattn.lab.tune import ahead as module
from dynattn.lab.tune.ahead import Ahead, Job
from dynattn.lab.tune.ask import Ask
from dynattn.lab.tune.plan import Counts
from dynattn.lab.tune.store import Store


def _job(model: Path, texts: Path) -> Job:
    return Job(str(model), "float32", read(texts), 64, Counts(3, 2, 20, 6), None, 0.2)


def test_without_workers_nothing_is_measured_ahead(tiny_decoder, many_texts, tmp_path):
    store = Store(tmp_path / "stages.json", "key")
    with Ahead(_job(tiny_decoder, many_texts), store) as ahead:
        assert ahead.at_once == 0
        ahead.ask([Ask("a", "dense")])
    assert not store.has("a")


def test_what_the_store_has_is_not_asked_again(tiny_decoder, many_texts, tmp_path, monkeypatch):
    asked, begun = [], []

    class Cluster(nullcontext):
        at_once = 7

        def __init__(self, job, workers, answer, command):
            super().__init__(self)
            begun.append(workers)

        def measure(self, asks):
            asked.append([ask.key for ask in asks])
            return iter([(ask.key, [1.0]) for ask in asks])

    monkeypatch.setattr(module.cluster, "Cluster", Cluster)
    store = Store(tmp_path / "stages.json", "key")
    store.put("a", [0.0])
    with Ahead(_job(tiny_decoder, many_texts), store, ray=True) as ahead:
        ahead.ask([Ask("a", "dense")])
        assert begun == []  # what is there needs no cluster
        ahead.ask([Ask("a", "dense"), Ask("b", "own")])
        ahead.ask([Ask("c", "own")])
        assert ahead.at_once == 7
    assert asked == [["b"], ["c"]]
    assert begun == [None]  # one cluster for all questions, and as many actors as it has CPUs
    assert Store(tmp_path / "stages.json", "key").once("b", lambda: None) == [1.0]


@pytest.mark.slow
def test_on_a_ray_cluster_the_scores_are_those_of_this_process(tiny_decoder, many_texts, tmp_path):
    ray = pytest.importorskip("ray")
    job, store = _job(tiny_decoder, many_texts), Store(tmp_path / "stages.json", "key")
    asks = [Ask("dense", "dense"), Ask("harm", "harm", names=("nm-1-2",))]
    ray.init(num_cpus=1, log_to_driver=False, include_dashboard=False)
    try:
        with Ahead(job, store, ray=True) as ahead:
            ahead.ask(asks)
    finally:
        ray.shutdown()
    assert store.once("dense", lambda: None) == pytest.approx(module.answer(job, asks[0])[1], abs=1e-5)
    here = module.answer(job, asks[1])[1]
    there = store.once("harm", lambda: None)
    assert there.keys() == here.keys()
