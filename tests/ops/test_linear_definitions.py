"""What the operators of linear layers stand for, by loops."""

from __future__ import annotations

import math

import pytest
import torch

from dynattn.ops import linear_definitions
from tests.kernels.cpu.linear.calling import above_by_loops, largest_by_loops, layer, rows_by_loops


@pytest.mark.parametrize(("n", "m"), [(1, 2), (2, 4), (2, 5), (8, 16), (3, 32)])
def test_the_largest_of_each_group(n: int, m: int) -> None:
    for inputs in (1, 31, 64):
        its = layer(4, inputs, 3, torch.float32)
        x, factors = its.x.clone(), torch.arange(inputs).remainder(3) + 1.0
        x[0, 0], x[1, -1], x[2, 0], factors[0] = math.nan, -math.nan, math.inf, 0
        for weights in (None, factors):
            assert torch.equal(linear_definitions.nm_kept(x, weights, n, m), largest_by_loops(x, n, m, weights))


def test_products() -> None:
    its = layer(4, 30, 5, torch.float64)
    thresholds = torch.arange(30).remainder(3).float()
    for got, keep in (
        (linear_definitions.rows(its.x, its.weight.t(), its.bias, its.keep_inputs), its.keep_inputs),
        (linear_definitions.nm_act(its.x, its.weight.t(), its.bias, None, 2, 4), largest_by_loops(its.x, 2, 4, None)),
        (linear_definitions.threshold(its.x, its.weight.t(), its.bias, thresholds), above_by_loops(its.x, thresholds)),
    ):
        assert torch.equal(got, rows_by_loops(its.x, its.weight, its.bias, keep))


def test_a_nan_is_above_every_threshold() -> None:
    x = torch.tensor([[math.nan, 1.0]])
    got = linear_definitions.threshold(x, torch.ones(2, 1), None, torch.full((1,), math.inf))
    assert got.isnan().all()
