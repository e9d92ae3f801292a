"""Linear layers with packed N:M weights: the kernel against products by loops."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from dynattn.kernels import cpu
from dynattn.kernels.cpu import linear_calls
from dynattn.ops.nm_weights import PackedNM, pack_nm
from tests.kernels.cpu.linear.calling import DTYPES, SIZES, error, layer, outputs_by_loops, poisoned

pytestmark = pytest.mark.skipif(not cpu.is_available(), reason=cpu.unavailable_reason() or "")

PATTERNS = [(1, 2), (2, 4), (1, 4), (3, 4)]


def masked(weight: Tensor, n: int, m: int) -> Tensor:
    """The first of each group from a place on that differs from group to group, cyclically."""
    i, j = torch.arange(weight.shape[1]), torch.arange(weight.shape[0]).unsqueeze(1)
    return weight.where((i - (i // m * 7 + j * 3)) % m < n, 0)


def run(x: Tensor, packed: PackedNM, bias: Tensor | None, isa: str) -> Tensor:
    out = poisoned(x, packed.values.shape[0])
    linear_calls.linear_nm_weight(x, packed.values, packed.places, bias, out, packed.n, packed.m, isa)
    return out


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_definition(size: tuple[int, int], dtype: torch.dtype, isa: str) -> None:
    for number, tokens in enumerate((1, 2, 7, 4)):
        n, m = PATTERNS[number % 4]
        its = layer(tokens, *size, dtype)
        weight, bias = masked(its.weight, n, m), its.bias if number % 3 else None
        want = outputs_by_loops(its.x, weight, bias, torch.ones(tokens, size[1], dtype=torch.bool)).to(dtype)
        assert torch.equal(run(its.x, pack_nm(weight, n, m), bias, isa), want), (tokens, n, m)


@pytest.mark.parametrize("dtype", DTYPES)
def test_rounding(dtype: torch.dtype, isa: str) -> None:
    its = layer(3, 4096, 40, dtype, whole=False)
    weight = masked(its.weight, 2, 4)
    want = its.x.double() @ weight.double().t() + its.bias.double()
    plain = torch.nn.functional.linear(its.x, weight, its.bias)
    assert error(run(its.x, pack_nm(weight, 2, 4), its.bias, isa), want) <= 2 * error(plain, want) + 1e-6


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_same_bits_alone_and_by_any_number_of_threads(dtype: torch.dtype, isa: str) -> None:
    its = layer(8, 300, 1000, dtype, whole=False)
    packed = pack_nm(masked(its.weight, 1, 2), 1, 2)
    threads = torch.get_num_threads()
    found = []
    try:
        for number in (1, 2, 3, 7):
            torch.set_num_threads(number)
            found.append(run(its.x, packed, its.bias, isa))
    finally:
        torch.set_num_threads(threads)
    for other in found[1:]:
        assert torch.equal(other, found[0])
    apart = [run(x, packed, its.bias, isa) for x in its.x.split(3)]
    assert torch.equal(torch.cat(apart), found[0])


def test_weights_that_are_not_stored_meet_no_input(isa: str) -> None:
    weight = torch.tensor([[1.0, 0, 0, 2, 3, 0]])
    x = torch.tensor([[1.0, math.inf, math.nan, 1, 1, math.nan]])
    assert run(x, pack_nm(weight, 1, 2), None, isa) == 6
