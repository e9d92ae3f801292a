"""Schedules by their definition, and a training written out."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import pytest
import torch

from dynattn.sparsity.training import Progressive, Stage
from tests.sparsity.training.plain import batches, kept_by_loops, learn, network, trained

STEPS = 20


def _stages(recipe: Progressive) -> list[Stage]:
    return [recipe.stage(step, STEPS) for step in range(STEPS + 1)]


@pytest.mark.parametrize("schedule", ["linear", "exponential"])
def test_the_rest_fades(schedule):
    found = _stages(Progressive(1, 8, schedule, rate=0.15, dense=0.1, hard=0.25))
    assert {stage[:2] for stage in found} == {(1, 8)}
    assert [stage.rest for stage in found[:2]] == [1.0, 1.0]
    for t, stage in enumerate(found[2:15]):
        assert stage.rest == pytest.approx(max(1 - 0.15 * t, 0) if schedule == "linear" else math.exp(-0.15 * t))
    assert [stage.rest for stage in found[15:]] == [0.0] * 6
    assert found[14].rest == (0.0 if schedule == "linear" else pytest.approx(math.exp(-1.8)))


def test_frames_are_equal():
    found = _stages(Progressive(1, 8, "stepwise", dense=0.1, hard=0.3))
    assert found[:2] == [Stage(1, 8, 1.0)] * 2
    frames = [(7, 8)] * 3 + [(4, 8)] * 3 + [(2, 8)] * 3 + [(1, 8)] * 3
    assert found[2:14] == [Stage(n, m) for n, m in frames]
    assert found[14:] == [Stage(1, 8)] * 7
    assert {stage[:2] for stage in _stages(Progressive(2, 4, "stepwise", dense=0.0, hard=0.0))} == {(3, 4), (2, 4)}
    geometric = _stages(Progressive(2, 4, "geometric", dense=0.0, hard=0.2))
    assert geometric[:16] == [Stage(n * 2, n * 4) for n in (8, 4, 2, 1) for _ in range(4)]
    assert geometric[16:] == [Stage(2, 4)] * 5


@pytest.mark.parametrize(
    "recipe",
    [
        Progressive(1, 4, "linear", 0.2),
        Progressive(1, 4, rate=0.3),
        Progressive(1, 4, "stepwise", dense=0.0),
        Progressive(1, 2, "geometric", dense=0.25, hard=0.25),
    ],
    ids=lambda recipe: recipe.name,
)
def test_it_is_the_training_written_out(recipe):
    data, optimizer = batches(8), partial(torch.optim.AdamW, lr=0.05)

    def factors(step, weight):
        stage = recipe.stage(step, len(data))
        kept = kept_by_loops(weight, stage.n, stage.m)
        return torch.where(kept, 1.0, stage.rest).double()

    model = network()
    steps = optimizer(model.parameters())
    with recipe.train(model, steps, steps=len(data)) as training:
        learn(model, steps, data)
    torch.testing.assert_close(list(model.parameters()), trained(data, optimizer, factors))  # type: ignore[call-overload]
    assert training.stage == Stage(recipe.n, recipe.m)


def test_names_and_refusals():
    every: list[Any] = ["linear", "exponential", "stepwise", "geometric"]
    recipes = [Progressive(1, 8, schedule) for schedule in every] + [Progressive(2, 4, "linear", 0.02, 0.0, 0.5)]
    for recipe in recipes:
        assert Progressive.from_name(recipe.name) == recipe
    assert recipes[1].name == "mdgf-exponential-1-8"
    assert recipes[2].name == "sdgf-stepwise-1-8"
    assert recipes[4].name == "mdgf-linear-2-4-r0.02-d0.0-h0.5"
    assert Progressive.from_name("mdgf-stepwise-1-8") is None
    with pytest.raises(ValueError, match="Progressive: steps must say how long"):
        Progressive(2, 4).stage(0, None)
    with pytest.raises(ValueError, match="stepwise frames must halve m down to n: got 1:6"):
        Progressive(1, 6, "stepwise")
    with pytest.raises(ValueError, match="dense and hard must be shares"):
        Progressive(2, 4, dense=0.6, hard=0.5)
    with pytest.raises(ValueError, match="rate must be from 0"):
        Progressive(2, 4, rate=math.nan)
    with pytest.raises(ValueError, match="schedule must be one of"):
        Progressive(2, 4, "cosine")  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError, match="rate must be a float"):
        Progressive(2, 4, rate=1)
