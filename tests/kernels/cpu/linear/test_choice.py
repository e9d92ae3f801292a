"""Which inputs each token keeps, by N:M and by thresholds: the kernel against choices by loops."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from dynattn.kernels import cpu
from dynattn.kernels.cpu import linear_calls
from tests.kernels.cpu.linear.calling import DTYPES, above_by_loops, choice, largest_by_loops

pytestmark = pytest.mark.skipif(not cpu.is_available(), reason=cpu.unavailable_reason() or "")

PATTERNS = [(1, 2), (2, 4), (1, 4), (3, 4), (4, 8), (7, 8), (1, 16), (8, 16)]


def numbers(tokens: int, inputs: int, dtype: torch.dtype) -> Tensor:
    """Few different ones, of both signs, so that sizes tie."""
    draw = torch.Generator().manual_seed(inputs)
    return torch.randint(-4, 5, (tokens, inputs), generator=draw).to(dtype) / 2


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("inputs", [1, 3, 15, 16, 17, 63, 64, 65, 130, 257, 600])
def test_the_largest_of_each_group(inputs: int, dtype: torch.dtype, isa: str) -> None:
    for number, (n, m) in enumerate(PATTERNS):
        x = numbers(2, inputs, dtype)
        factors = torch.arange(inputs).remainder(3) + 1.0 if number % 2 else None
        want = largest_by_loops(x, n, m, factors)
        assert torch.equal(choice(x, isa, n=n, m=m, factors=factors), want), (n, m)


def test_sizes_are_compared_as_they_are(isa: str) -> None:
    """Neighbours of float32, and products that differ in the last bit."""
    draw = torch.Generator().manual_seed(0)
    x, factors = torch.rand(9, 64, generator=draw) * 1e-7 + 1, torch.rand(64, generator=draw) * 1e-7 + 1
    x[:, 5], x[1, 9] = -x[:, 4], 1e-42
    for n, m in PATTERNS:
        for weights in (None, factors):
            assert torch.equal(choice(x, isa, n=n, m=m, factors=weights), largest_by_loops(x, n, m, weights))


@pytest.mark.parametrize("m", linear_calls.CHOICE_MS)
def test_a_nan_is_kept_and_counts_as_infinity(m: int, isa: str) -> None:
    x = numbers(3, 70, torch.float32)
    x[0, 1], x[0, 65], x[1, 32], x[1, 33], x[2, 69], x[2, 0] = (
        math.nan,
        -math.nan,
        math.inf,
        math.nan,
        math.nan,
        -math.inf,
    )
    factors = torch.ones(70)
    factors[0] = 0.0  # of infinity NaN
    for weights in (None, factors):
        got = choice(x, isa, n=1, m=m, factors=weights)
        assert torch.equal(got, largest_by_loops(x, 1, m, weights))
        assert got[x.isnan()].all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("inputs", [1, 17, 64, 130])
def test_what_is_above_thresholds(inputs: int, dtype: torch.dtype, isa: str) -> None:
    x = numbers(3, inputs, dtype)
    x[1, 0], x[2, -1] = math.nan, -math.inf
    for thresholds in (torch.tensor([1.0]), torch.tensor([-1.0]), torch.arange(inputs).remainder(5) / 2):
        assert torch.equal(choice(x, isa, thresholds=thresholds), above_by_loops(x, thresholds))


def test_the_same_by_any_number_of_threads(isa: str) -> None:
    x = numbers(700, 300, torch.float32)
    threads = torch.get_num_threads()
    found = []
    try:
        for number in (1, 2, 7):
            torch.set_num_threads(number)
            found.append(choice(x, isa, n=8, m=16))
    finally:
        torch.set_num_threads(threads)
    for other in found:
        assert torch.equal(other, found[0])
    assert torch.equal(found[0][:40], largest_by_loops(x[:40], 8, 16, None))
