"""Linear layers whose tokens give some of their inputs: the kernel against sums by loops."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from dynattn.kernels import cpu
from tests.kernels.cpu.linear.calling import (
    DTYPES,
    SIZES,
    above_by_loops,
    error,
    largest_by_loops,
    layer,
    rows,
    rows_by_loops,
)

pytestmark = pytest.mark.skipif(not cpu.is_available(), reason=cpu.unavailable_reason() or "")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_definition(size: tuple[int, int], dtype: torch.dtype, isa: str) -> None:
    """Sums of integers are exact, so the answer is one to the bit. What is left out is NaN."""
    for tokens, share in ((1, 0.5), (2, 1.0), (3, 0.1), (5, 0.5), (8, 0.8)):
        its = layer(tokens, *size, dtype, share)
        x = its.x.masked_fill(~its.keep_inputs, math.nan)
        unread = ~its.keep_inputs.any(0)
        weight_t = its.weight.t().contiguous().masked_fill(unread.unsqueeze(1), math.nan)
        bias = None if tokens == 2 else its.bias
        want = rows_by_loops(its.x, its.weight, bias, its.keep_inputs).to(dtype)
        assert torch.equal(rows(x, weight_t, bias, its.keep_inputs, isa), want), tokens


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_kernel_chooses_by_itself(dtype: torch.dtype, isa: str) -> None:
    for tokens, size in ((1, (300, 40)), (3, (63, 65)), (8, (130, 17))):
        its = layer(tokens, *size, dtype)
        factors, thresholds = torch.arange(size[0]).remainder(3) + 1.0, torch.arange(size[0]).remainder(4).float()
        cases: list[tuple[torch.Tensor, dict[str, Any]]] = [
            (largest_by_loops(its.x, 1, 2, None), {"n": 1, "m": 2}),
            (largest_by_loops(its.x, 8, 16, factors), {"n": 8, "m": 16, "factors": factors}),
            (above_by_loops(its.x, thresholds), {"thresholds": thresholds}),
            (above_by_loops(its.x, torch.ones(1)), {"thresholds": torch.ones(1)}),
        ]
        for keep, by in cases:
            want = rows_by_loops(its.x, its.weight, its.bias, keep).to(dtype)
            assert torch.equal(rows(its.x, its.weight.t().contiguous(), its.bias, None, isa, **by), want), by


@pytest.mark.parametrize("dtype", DTYPES)
def test_rounding(dtype: torch.dtype, isa: str) -> None:
    its = layer(3, 4096, 70, dtype, whole=False)
    want = its.x.double().masked_fill(~its.keep_inputs, 0) @ its.weight.double().t() + its.bias.double()
    plain = torch.nn.functional.linear(its.x.masked_fill(~its.keep_inputs, 0), its.weight, its.bias)
    got = rows(its.x, its.weight.t().contiguous(), its.bias, its.keep_inputs, isa)
    assert error(got, want) <= 2 * error(plain, want) + 1e-6


def test_long_sums_do_not_drift(isa: str) -> None:
    """One input after the other would lose a thousand units here: the total grows to 2¹⁴, and each term is cut off."""
    x, weight_t = torch.full((1, 1 << 14), 0.9999), torch.ones(1 << 14, 40)
    got = rows(x, weight_t, None, torch.ones_like(x, dtype=torch.bool), isa)
    want = (1 << 14) * x[0, 0].double()
    assert ((got.double() - want) / want).abs().max() < 100 * 2**-24


@pytest.mark.parametrize("dtype", [*DTYPES, torch.int8], ids=str)
def test_the_same_bits_alone_and_by_any_number_of_threads(dtype: torch.dtype, isa: str) -> None:
    its = layer(8, 300, 1000, torch.bfloat16 if dtype == torch.int8 else dtype, 0.6, whole=False)
    weight_t, scale = its.weight.t().contiguous(), None
    if dtype == torch.int8:
        weight_t, scale = (weight_t * 40).clamp(-127, 127).to(torch.int8), its.weight[:, 0].float()
    threads = torch.get_num_threads()
    found = []
    try:
        for number in (1, 2, 3, 7):
            torch.set_num_threads(number)
            found.append(rows(its.x, weight_t, its.bias, its.keep_inputs, isa, scale))
    finally:
        torch.set_num_threads(threads)
    for other in found[1:]:
        assert torch.equal(other, found[0])
    for count in (1, 3):
        apart = [
            rows(x, weight_t, its.bias, keep, isa, scale)
            for x, keep in zip(its.x.split(count), its.keep_inputs.split(count), strict=True)
        ]
        assert torch.equal(torch.cat(apart), found[0])


def test_int8_weights_have_a_factor_for_each_output(isa: str) -> None:
    for tokens, dtype in ((1, torch.float32), (3, torch.bfloat16)):
        its = layer(tokens, 70, 45, dtype)
        scale = 2.0 ** torch.arange(45).remainder(5).sub(2)
        got = rows(its.x, its.weight.t().contiguous().to(torch.int8), its.bias, its.keep_inputs, isa, scale)
        want = rows_by_loops(its.x, its.weight * scale.unsqueeze(1), its.bias, its.keep_inputs)
        assert torch.equal(got, want.to(dtype))


def test_rows_may_lie_apart(isa: str) -> None:
    its = layer(2, 40, 33, torch.float32)
    wide = torch.full((40, 50), math.nan)
    wide[:, 7:40] = its.weight.t()
    want = rows_by_loops(its.x, its.weight, its.bias, its.keep_inputs).float()
    assert torch.equal(rows(its.x, wide[:, 7:40], its.bias, its.keep_inputs, isa), want)


def test_what_is_not_finite_reaches_the_outputs_of_those_that_keep_it(isa: str) -> None:
    its = layer(3, 40, 33, torch.float32, 1.0)
    x, keep = its.x.clone(), its.keep_inputs.clone()
    weight_t = its.weight.t().contiguous()
    x[0, 5], keep[0, 5] = math.nan, True
    x[1, 6], keep[1, 6] = math.inf, False
    weight_t[7, 20] = math.inf
    keep[2, 7] = False
    x[:2, 7] = 1.0
    got = rows(x, weight_t, None, keep, isa)
    assert got[0].isnan().all()
    assert got[1, 20] == math.inf
    assert got[1, :20].isfinite().all()
    assert got[2].isfinite().all()
