"""The tile engines against each other: what is written for AMX and AVX-512 runs here on emulated instructions."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from dynattn.methods import NM
from tests.kernels.cpu.tiles import building
from tests.kernels.cpu.tiles.calling import Problem, Sums, check, grid, run

pytestmark = pytest.mark.skipif(building.unavailable_reason() is not None, reason=str(building.unavailable_reason()))

STEPS = 3  # of 32 numbers


def product(library: ctypes.CDLL, a: Tensor, b: Tensor, sums: Tensor) -> Tensor:
    """``sums + A B`` by a library's engine: A (32, 32 · steps) and B (32 · steps, 32) in bfloat16, sums (32, 32)."""
    steps = a.shape[1] // 32
    pairs = b.view(steps, 16, 2, 2, 16).permute(0, 3, 1, 4, 2).contiguous()  # [step, columns, pair, column, number]
    result = sums.clone()
    pointers = (ctypes.c_void_p(a.data_ptr()), ctypes.c_void_p(pairs.data_ptr()))
    library.engine_product(*pointers, ctypes.c_int64(steps), ctypes.c_void_p(result.data_ptr()))
    return result


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Equal as floats are, where all that is NaN is one, and 0 has one sign."""
    return torch.equal(a.nan_to_num(nan=1e39), b.nan_to_num(nan=1e39)) and torch.equal(a.isnan(), b.isnan())


def ordinary(generator: torch.Generator) -> Callable[..., Tensor]:
    return lambda *shape: torch.randn(*shape, generator=generator)


def of_every_size(generator: torch.Generator) -> Callable[..., Tensor]:
    """Exponents over the whole range, so that products underflow, overflow and cancel."""
    return lambda *shape: (
        torch.randn(*shape, generator=generator) * 2.0 ** torch.randint(-140, 64, shape, generator=generator).double()
    ).float()


def near_the_least(generator: torch.Generator) -> Callable[..., Tensor]:
    """Products and sums around 2^-126, where results become 0."""
    return lambda *shape: (
        torch.randn(*shape, generator=generator) * 2.0 ** torch.randint(-66, -60, shape, generator=generator).double()
    ).float()


KINDS = [ordinary, of_every_size, near_the_least]


@pytest.mark.parametrize("kind", KINDS)
def test_the_portable_engine_computes_amx_numbers(kind: Callable):
    make = kind(torch.Generator().manual_seed(0))
    a, b, sums = make(32, 32 * STEPS).bfloat16(), make(32 * STEPS, 32).bfloat16(), make(32, 32) ** 2
    portable, emulated = (product(building.library(*options), a, b, sums) for options in ((), building.EMULATED))
    assert same_bits(portable, emulated)
    if kind is ordinary:
        exact = sums.double() + a.double() @ b.double()
        assert (portable - exact).abs().max() < 1e-4


def test_the_order_of_the_sums_is_the_manuals():
    """Even and odd numbers are summed apart, and added to each other before the accumulator sees them."""
    a, b, sums = torch.zeros(32, 32).bfloat16(), torch.zeros(32, 32).bfloat16(), torch.zeros(32, 32)
    big, small = 2.0**30, 2.0**3
    b[:, 0] = 1.0
    a[0, :4] = torch.tensor([big, small, -big, 0.0])  # in one sum the small number would be lost in the first
    sums[1, 0] = big
    a[1, :3] = torch.tensor([small, -small, small])  # three added one by one would each be lost in the accumulator
    a[1, 1] = 4 * small
    sums[2, 0] = 1.0
    a[2, :2] = torch.tensor([2.0**-24, 2.0**-24])  # half a unit each, which ties would drop; together one unit
    got = product(building.library(), a, b, sums)
    assert got[0, 0] == small
    assert got[1, 0] == big + 6 * small - (6 * small) % 128
    assert got[2, 0] == 1.0 + 2.0**-23


def test_denormal_numbers_count_as_zero():
    a, b, sums = torch.zeros(32, 32).bfloat16(), torch.zeros(32, 32).bfloat16(), torch.zeros(32, 32)
    a[0, 0], b[0, 0] = 2.0**-127, 2.0**100
    a[1, 0], b[0, 1] = 2.0**-70, 2.0**-60
    a[2, 0], b[0, 2] = 2.0**-60, 2.0**-66
    got = product(building.library(), a, b, sums)
    assert got[0, 0] == 0.0
    assert got[1, 1] == 0.0
    assert got[2, 2] == 2.0**-126


@pytest.mark.parametrize("kind", KINDS)
def test_emulated_products_of_avx512(kind: Callable):
    """VDPBF16PS: each pair's odd product is added first, each product with one rounding."""
    make = kind(torch.Generator().manual_seed(0))
    a, b, sums = make(32, 32).bfloat16(), make(32, 32).bfloat16(), make(32, 32) ** 2
    got = product(building.library(*building.EMULATED_AVX512BF16), a, b, sums)
    exact = sums.double() + a.double() @ b.double()
    if kind is ordinary:
        assert (got - exact).abs().max() < 1e-4
    want = flush(sums.double())
    for k in range(0, 32, 2):
        for number in (k + 1, k):
            left, right = flush(a[:, number].double()), flush(b[number].double())
            want = flush((want + left.unsqueeze(1) * right).float().double())
    assert same_bits(got, want.float())


def flush(x: Tensor) -> Tensor:
    return x.where(x.abs() >= 2.0**-126, 0.0)


PROBLEMS = [
    grid(2, 1, 50, 150, 32, 16, method=NM(1, 1), causal=True),
    grid(2, 1, 50, 150, 20, 40, method=NM(1, 2)),
    grid(2, 1, 33, 200, 64, 72, method=NM(1, 2, stride=16), causal=True),
    grid(1, 1, 40, 130, 80, 33, method=NM(2, 4)),
    grid(1, 1, 40, 130, 16, 16, method=NM(2, 4, stride=16), scale=-0.5),
    grid(1, 1, 40, 170, 16, 16, method=NM(3, 5, stride=7), dropout_p=0.3, seed=5),
    grid(1, 1, 40, 130, 16, 16, method=NM(1, 2), dropout_p=0.3, seed=5),
    grid(1, 1, 40, 130, 16, 16, method=NM(1, 2, window=5, sinks=3)),
    grid(1, 1, 40, 130, 16, 16, method=NM(2, 4), mask=torch.arange(130) % 7 < 5),
    grid(1, 1, 40, 130, 16, 16, method=NM(1, 2), mask=(torch.arange(130) % 7 - 3.0)),
    grid(1, 1, 40, 130, 16, 16, method=NM(1, 1), blocks=torch.arange(9).view(1, 1, 3, 3) % 2 == 0, block_size=48),
]


def random_scores(problem: Problem) -> Problem:
    generator = torch.Generator().manual_seed(3)
    query, key = (torch.randn(x.shape, generator=generator).bfloat16() for x in (problem.query, problem.key))
    return replace(problem, query=query, key=key)


def with_trouble(problem: Problem) -> Problem:
    key, value = problem.key.clone(), problem.value.clone()
    key[0, 0, 3, 1], value[0, 0, 70, 2] = math.inf, math.nan
    return replace(problem, key=key, value=value)


@pytest.mark.parametrize("change", [random_scores, with_trouble])
@pytest.mark.parametrize("number", range(len(PROBLEMS)))
def test_amx_gives_the_portable_engines_bits(number: int, change: Callable):
    """On emulated tiles, with the same vectors as the portable engine."""
    library, problem = building.library(*building.EMULATED), change(PROBLEMS[number])
    before = library.shim_products()
    for sums in Sums:
        want, got = run(problem, "tiles-portable", sums), run(problem, library, sums)
        assert all(same_bits(a, b) for a, b in zip(want, got, strict=True))
    assert library.shim_products() > before


def test_amx_gives_the_portable_engines_bits_of_float32():
    """By three parts, of which one has 2 tiles of dims."""
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(1, 1, n, 40, generator=generator) for n in (19, 40, 40))
    for sums in (Sums.ROUNDED, Sums.COUNTED):
        by = ("tiles-portable", building.library(*building.EMULATED))
        for want, got in zip(*(run(Problem(query, key, value), engine, sums) for engine in by), strict=True):
            assert same_bits(want, got)


@pytest.mark.parametrize("number", range(len(PROBLEMS)))
def test_avx512_is_the_definition(number: int):
    """Both engines with emulated vectors of AVX-512, which round a multiply-add once."""
    for options in (building.EMULATED_AVX512BF16, building.EMULATED_AMX_AVX512):
        library = building.library(*options)
        check(PROBLEMS[number], library)
        if PROBLEMS[number].dropout_p == 0.0:  # the reference lets NaN through where its pair is dropped
            check(with_trouble(PROBLEMS[number]), library)


def test_another_librarys_configuration_is_left_as_found(monkeypatch: pytest.MonkeyPatch):
    library, kept = building.library(*building.EMULATED), []

    class Watched:
        def dynattn_nm_forward(self, arguments: bytes) -> int:
            kept.append(library.keeps_configuration(arguments))
            return 0

    run(PROBLEMS[0], Watched())  # type: ignore[arg-type]
    assert kept == [1]
