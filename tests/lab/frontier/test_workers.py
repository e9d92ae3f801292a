"""Workers here and on a cluster."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("transformers")
pytest.importorskip("pydantic")
pytest.importorskip("plotly")


from dynattn.lab.frontier import Settings, sweep, workers
from dynattn.lab.frontier.results import Frontier
from tests.lab.frontier.running import here, settings_for, silent


def _decoding(model: Path, texts: Path, dtype: str) -> Settings:
    given = {"tasks": ("passkey",), "tokens": (128,), "items": 2, "phases": ("decode",), "methods": ("nm-1-4",)}
    return settings_for(model, texts, **given, seconds=0, dtype=dtype)


def _bytes(found: Frontier) -> list[float]:
    """Of the weights that a step reads, which tell the dtype that a model was loaded in."""
    return [weights for grade in found.grades.values() if (weights := grade.work.weights) is not None]


@pytest.mark.slow
def test_on_a_ray_cluster_the_scores_are_those_of_this_process(
    measured: tuple[Frontier, Path], tiny_encoder: Path, tiny_decoder: Path, texts: Path, tmp_path: Path
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
        half, path = _decoding(tiny_decoder, texts, "bfloat16"), tmp_path / "half.json"
        rounded = sweep(half, path, silent, lambda job, cells: cluster.run(job, cells, None))
    finally:
        ray.shutdown()
    assert there.failures == {}
    assert len(there.grades) == 3
    for key, grade in there.grades.items():
        assert grade.scores == pytest.approx(found.grades[key].scores, abs=1e-6)
    assert rounded.failures == {}
    assert _bytes(rounded) == _bytes(sweep(half, tmp_path / "own.json", silent, here))


@pytest.mark.usefixtures("forked_python")
def test_workers_have_the_dtype_of_the_sweep(tiny_decoder: Path, texts: Path, tmp_path: Path):
    half = _decoding(tiny_decoder, texts, "bfloat16")
    there = sweep(half, tmp_path / "there.json", silent, lambda job, cells: workers.run(job, cells, 1, 1))
    assert there.failures == {}
    assert _bytes(there) == _bytes(sweep(half, tmp_path / "half.json", silent, here))
    assert len(_bytes(there)) == 2
    whole = sweep(_decoding(tiny_decoder, texts, "float32"), tmp_path / "whole.json", silent, here)
    assert [2 * size for size in _bytes(there)] == _bytes(whole)
