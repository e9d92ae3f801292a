"""Runs whose weights are thinned out, or whose activations are penalised, under Trainer."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip("accelerate")

from dynattn.lab.training.run import run
from dynattn.lab.training.study import study
from dynattn.sparsity.linears import linears
from tests.lab.training.tiny import JOB, Pretend, Tiny, silent


def _job(method: str, seed: int = 0, **changes: Any):
    return replace(JOB(method, seed), steps=3, evaluate_every=10, save_every=2, **changes)


class Watched(Pretend):
    """Notes, at each evaluation, the largest number of weights of a group of four that are not 0, and whether the model
    was trained."""

    def __init__(self) -> None:
        super().__init__()
        self.most: list[int] = []

    def evaluate(self, model: nn.Module, advance: Callable[[], None]) -> np.ndarray:
        assert not any("classifier" in name or "head" in name for name in linears(model))
        self.most.append(max(int((one.weight.view(-1, 4) != 0).sum(1).max()) for one in linears(model).values()))
        return super().evaluate(model, advance)


def test_a_study_has_one_shot_zeros_before_and_between_and_learnt_ones_after(tmp_path: Path):
    watched = Watched()
    names = ["sr-ste-2-4", "nmweight-2-4"]
    found = study(watched, names, [0], _job, tmp_path, silent, swap=True)
    scores = {
        (arm.method, arm.trained, arm.swapped): arm.runs[0].scores for arm in found.arms
    }  # fmt: skip
    first, second = names
    assert scores[first, False, False] == scores[second, False, False] != scores["sdpa", False, False]
    assert scores[first, True, True] == scores[second, True, True] != scores["sdpa", True, False]
    after = [scores[name, True, False] for name in ("sdpa", *names)]
    assert after[0] != after[1] != after[2] != after[0]
    # Without training dense, then both; dense trained, then both swapped in and trained, in the order of their runs.
    assert watched.most[:3] == [4, 2, 2]
    assert watched.most[3] == 4
    assert set(watched.most[4:]) == {2}
    assert len(watched.most) == 8
    lines = (tmp_path / "sr-ste-2-4-seed0" / "metrics.jsonl").read_text().splitlines()
    assert all(isinstance(json.loads(line)["changed"], int) for line in lines)
    assert "density_loss" not in found.job


def test_a_recipe_that_was_stopped_goes_on_at_its_step(tmp_path: Path):
    job = _job("mdgf-exponential-1-4-r1.0-h0.25")

    class Stopping(Tiny):
        left = 3

        def collate(self, examples: list[Any]) -> dict[str, Any]:
            self.left -= 1
            if self.left < 0:
                raise KeyboardInterrupt
            return super().collate(examples)

    whole = run(job, Tiny(), tmp_path / "whole", silent)
    with pytest.raises(KeyboardInterrupt):
        run(job, Stopping(), tmp_path / "stopped", silent)
    assert (tmp_path / "stopped" / job.name / "checkpoint-2").exists()
    assert run(job, Tiny(), tmp_path / "stopped", silent) == whole


def test_a_penalty_on_density_is_part_of_the_loss_and_noted(tmp_path: Path):
    job = replace(_job("sdpa", density_loss=100.0, density_epsilon=1e-30), steps=1)
    found = run(job, Tiny(), tmp_path, silent)
    assert 100 < found.losses[0].value < 102  # a GELU is hardly ever 0: all of it counts, and the task's own loss
    (line,) = (tmp_path / job.name / "metrics.jsonl").read_text().splitlines()
    assert json.loads(line)["density"] == pytest.approx(1, abs=1e-2)


def test_penalties_are_refused_with_the_job():
    with pytest.raises(ValueError, match="DensityLoss: weight must be positive"):
        _job("sdpa", density_loss=-1.0)
    with pytest.raises(ValueError, match="Job: density_epsilon must come with density_loss"):
        _job("sdpa", density_epsilon=1.0)
    with torch.no_grad():
        assert _job("sdpa").density_loss is None
