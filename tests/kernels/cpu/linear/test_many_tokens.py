"""Linear layers of many tokens that give some of their inputs: the kernel against sums by loops."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from dynattn.kernels import cpu
from tests.kernels.cpu.linear.calling import (
    SIZES,
    Layer,
    above_by_loops,
    error,
    largest_by_loops,
    layer,
    poisoned,
    rows,
    rows_by_loops,
)

pytestmark = pytest.mark.skipif(not cpu.is_available(), reason=cpu.unavailable_reason() or "")

MORE_SIZES = [(64, 64), (128, 65), (65, 128), (1, 130), (200, 1)]


def turned(its: Layer) -> torch.Tensor:
    """The weight by its inputs."""
    return its.weight.t().contiguous()


@pytest.mark.parametrize("size", SIZES + MORE_SIZES, ids=str)
def test_definition(size: tuple[int, int], isa: str) -> None:
    """Sums of integers are exact, so the answer is one to the bit. What is left out is NaN."""
    for tokens, share in ((9, 0.5), (33, 1.0), (70, 0.1), (197, 0.5), (40, 0.0)):
        its = layer(tokens, *size, torch.float32, share)
        x = its.x.masked_fill(~its.keep_inputs, math.nan)
        unread = ~its.keep_inputs.any(0)
        weight_t = turned(its).masked_fill(unread.unsqueeze(1), math.nan)
        bias = None if tokens == 33 else its.bias
        want = rows_by_loops(its.x, its.weight, bias, its.keep_inputs).float()
        assert torch.equal(rows(x, weight_t, bias, its.keep_inputs, isa), want), tokens


@pytest.mark.parametrize("size", [(63, 65), (130, 31)], ids=str)
def test_the_kernel_chooses_by_itself(size: tuple[int, int], isa: str) -> None:
    its = layer(20, *size, torch.float32)
    factors = torch.arange(size[0]).remainder(3) + 1.0
    thresholds = torch.arange(size[0]).remainder(4).float()
    cases: list[tuple[torch.Tensor, dict[str, Any]]] = [
        (largest_by_loops(its.x, 1, 2, None), {"n": 1, "m": 2}),
        (largest_by_loops(its.x, 2, 4, factors), {"n": 2, "m": 4, "factors": factors}),
        (largest_by_loops(its.x, 5, 8, None), {"n": 5, "m": 8}),
        (largest_by_loops(its.x, 8, 16, factors), {"n": 8, "m": 16, "factors": factors}),
        (above_by_loops(its.x, thresholds), {"thresholds": thresholds}),
        (above_by_loops(its.x, torch.ones(1)), {"thresholds": torch.ones(1)}),
    ]
    for keep, by in cases:
        want = rows_by_loops(its.x, its.weight, its.bias, keep).float()
        assert torch.equal(rows(its.x, turned(its), its.bias, None, isa, **by), want), by


def test_a_truth_value_is_any_byte_but_0(isa: str) -> None:
    its = layer(10, 70, 5, torch.float32)
    keep = its.keep_inputs.to(torch.uint8)
    keep *= torch.arange(1, 71).to(torch.uint8)  # the lowest bit of every other one is 0
    want = rows_by_loops(its.x, its.weight, None, its.keep_inputs).float()
    for tokens in (3, 10):
        got = rows(its.x[:tokens], turned(its), None, keep.view(torch.bool)[:tokens], isa)
        assert torch.equal(got, want[:tokens])


def test_rounding(isa: str) -> None:
    its = layer(40, 4096, 70, torch.float32, whole=False)
    kept = its.x.masked_fill(~its.keep_inputs, 0)
    want = kept.double() @ its.weight.double().t() + its.bias.double()
    plain = torch.nn.functional.linear(kept, its.weight, its.bias)
    assert error(rows(its.x, turned(its), its.bias, its.keep_inputs, isa), want) <= 2 * error(plain, want) + 1e-6


def test_long_sums_do_not_drift(isa: str) -> None:
    x, weight_t = torch.full((9, 1 << 14), 0.9999), torch.ones(1 << 14, 40)
    got = rows(x, weight_t, None, torch.ones_like(x, dtype=torch.bool), isa)
    want = (1 << 14) * x[0, 0].double()
    assert ((got.double() - want) / want).abs().max() < 150 * 2**-24


def test_the_same_bits_among_others_and_by_any_number_of_threads(isa: str) -> None:
    its = layer(400, 130, 200, torch.float32, 0.6, whole=False)
    threads = torch.get_num_threads()
    found = []
    try:
        for number in (1, 2, 3, 7):
            torch.set_num_threads(number)
            found.append(rows(its.x, turned(its), its.bias, its.keep_inputs, isa))
    finally:
        torch.set_num_threads(threads)
    for other in found[1:]:
        assert torch.equal(other, found[0])
    for count in (9, 57):
        apart = [
            rows(x, turned(its), its.bias, keep, isa)
            for x, keep in zip(its.x.split(count), its.keep_inputs.split(count), strict=True)
            if len(x) == count
        ]
        assert torch.equal(torch.cat(apart), found[0][: len(apart) * count])


def test_rows_may_lie_apart_and_nothing_behind_is_written(isa: str) -> None:
    its = layer(20, 70, 33, torch.float32)
    wide = torch.full((70, 50), math.nan)
    wide[:, 7:40] = its.weight.t()
    want = rows_by_loops(its.x, its.weight, its.bias, its.keep_inputs).float()
    assert torch.equal(rows(its.x, wide[:, 7:40], its.bias, its.keep_inputs, isa), want)
    whole = poisoned(its.x, 40)
    cut = whole.flatten()[: 20 * 33].view(20, 33)
    rows(its.x, wide[:, 7:40], its.bias, its.keep_inputs, isa, out=cut)
    assert torch.equal(cut, want)
    assert whole.flatten()[20 * 33 :].isnan().all()


def test_what_is_not_finite_reaches_the_outputs_of_those_that_keep_it(isa: str) -> None:
    its = layer(12, 40, 33, torch.float32, 1.0)
    x, keep, weight_t = its.x.clone(), its.keep_inputs.clone(), turned(its)
    x[0, 5] = math.nan
    x[1, 6], keep[1, 6] = math.inf, False
    weight_t[7, 20] = math.inf
    keep[2:, 7] = False
    x[:2, 7] = 1.0
    got = rows(x, weight_t, None, keep, isa)
    assert got[0].isnan().all()
    assert got[1, 20] == math.inf
    assert got[1, :20].isfinite().all()
    assert got[2:].isfinite().all()
    chosen = rows(x, weight_t, None, None, isa, n=1, m=8)  # a NaN beside numbers
    assert chosen[0].isnan().all()
    assert chosen[3:, :20].isfinite().all()
