"""Workers here and on a cluster."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("transformers")
pytest.importorskip("pydantic")
pytest.importorskip("plotly")


from dynattn.lab.frontier import sweep
from dynattn.lab.frontier.results import Frontier
from tests.lab.frontier.running import settings_for, silent


@pytest.mark.slow
def test_on_a_ray_cluster_the_scores_are_those_of_this_process(
    measured: tuple[Frontier, Path], tiny_encoder: Path, texts: Path, tmp_path: Path
):
    ray = pytest.importorskip("ray")
    from dynattn.lab.frontier import cluster

    found, _ = measured
    ray.init(num_cpus=1, log_to_driver=False, include_dashboard=False)
    try:
        settings = settings_for(tiny_encoder, texts, tokens=(32,), seconds=0)
        path = tmp_path / "record.json"
        there = sweep(settings, path, silent, lambda job, cells: cluster.run(job, cells, None))
        assert ray.is_initialized()  # a cluster that was there before stays
    finally:
        ray.shutdown()
    assert there.failures == {}
    assert len(there.grades) == 3
    for key, grade in there.grades.items():
        assert grade.scores == pytest.approx(found.grades[key].scores, abs=1e-6)
