"""Linear layers whose tokens want some of the outputs: the kernel against products by loops."""

from __future__ import annotations

import math

import pytest
import torch

from dynattn.kernels import cpu
from tests.kernels.cpu.linear.calling import DTYPES, SIZES, error, layer, outputs, outputs_by_loops

pytestmark = pytest.mark.skipif(not cpu.is_available(), reason=cpu.unavailable_reason() or "")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_definition(size: tuple[int, int], dtype: torch.dtype, isa: str) -> None:
    """Sums of integers are exact, so the answer is one to the bit. Rows that nobody wants are NaN."""
    for tokens, share in ((1, 0.5), (2, 1.0), (3, 0.1), (4, 0.3), (5, 0.5), (8, 0.8)):
        its = layer(tokens, *size, dtype, share)
        weight = its.weight.masked_fill(~its.keep_outputs.any(0).unsqueeze(1), math.nan)
        bias = its.bias if tokens % 3 else None
        want = outputs_by_loops(its.x, its.weight, bias, its.keep_outputs).to(dtype)
        assert torch.equal(outputs(its.x, weight, bias, its.keep_outputs, isa), want), tokens


@pytest.mark.parametrize("dtype", DTYPES)
def test_rounding(dtype: torch.dtype, isa: str) -> None:
    its = layer(3, 4096, 70, dtype, whole=False)
    want = (its.x.double() @ its.weight.double().t() + its.bias.double()).masked_fill(~its.keep_outputs, 0)
    plain = torch.nn.functional.linear(its.x, its.weight, its.bias).masked_fill(~its.keep_outputs, 0)
    assert error(outputs(its.x, its.weight, its.bias, its.keep_outputs, isa), want) <= 2 * error(plain, want) + 1e-6


@pytest.mark.parametrize("dtype", [*DTYPES, torch.int8], ids=str)
def test_the_same_bits_alone_and_by_any_number_of_threads(dtype: torch.dtype, isa: str) -> None:
    its = layer(8, 301, 1000, torch.bfloat16 if dtype == torch.int8 else dtype, 0.6, whole=False)
    weight, scale = its.weight, None
    if dtype == torch.int8:
        weight, scale = (weight * 40).clamp(-127, 127).to(torch.int8), its.weight[:, 0].float()
    threads = torch.get_num_threads()
    found = []
    try:
        for number in (1, 2, 3, 7):
            torch.set_num_threads(number)
            found.append(outputs(its.x, weight, its.bias, its.keep_outputs, isa, scale))
    finally:
        torch.set_num_threads(threads)
    for other in found[1:]:
        assert torch.equal(other, found[0])
    for count in (1, 2, 3, 5):
        apart = [
            outputs(x, weight, its.bias, keep, isa, scale)
            for x, keep in zip(its.x.split(count), its.keep_outputs.split(count), strict=True)
        ]
        assert torch.equal(torch.cat(apart), found[0])


def test_int8_weights_have_a_factor_for_each_output(isa: str) -> None:
    for tokens, dtype in ((1, torch.float32), (3, torch.bfloat16)):
        its = layer(tokens, 70, 45, dtype)
        scale = 2.0 ** torch.arange(45).remainder(5).sub(2)
        got = outputs(its.x, its.weight.to(torch.int8), its.bias, its.keep_outputs, isa, scale)
        want = outputs_by_loops(its.x, its.weight * scale.unsqueeze(1), its.bias, its.keep_outputs)
        assert torch.equal(got, want.to(dtype))


def test_rows_may_lie_apart(isa: str) -> None:
    its = layer(2, 40, 33, torch.float32)
    wide = torch.full((33, 50), math.nan)
    wide[:, 7:47] = its.weight
    want = outputs_by_loops(its.x, its.weight, its.bias, its.keep_outputs).float()
    assert torch.equal(outputs(its.x, wide[:, 7:47], its.bias, its.keep_outputs, isa), want)


def test_what_is_not_finite_reaches_what_is_wanted_and_nothing_else(isa: str) -> None:
    its = layer(2, 40, 33, torch.float32)
    x, keep = its.x.clone(), torch.ones_like(its.keep_outputs)
    x[0, 5], keep[0, 3] = math.nan, False
    got = outputs(x, its.weight, its.bias, keep, isa)
    assert got[0, 3] == 0
    assert got[0, keep[0]].isnan().all()
    assert got[1].isfinite().all()
