"""float32 on tiles, by bfloat16 parts: the error of each precision, and what parts do not hold."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor

import dynattn
from dynattn.kernels import cpu
from dynattn.methods import NM
from tests.kernels.cpu.tiles import building
from tests.kernels.cpu.tiles.calling import Problem, Sums, error, grid, reference_of, run
from tests.kernels.cpu.tiles.test_forward import some_blocks

METHODS = [NM(1, 1), NM(1, 2), NM(2, 4, stride=16), NM(3, 5), NM(1, 2, window=5, sinks=3)]
SHAPES = [  # heads, kv_heads, q_len, kv_len, head_dim, value_dim
    (1, 1, 1, 1, 1, 1), (4, 2, 37, 111, 33, 20), (1, 1, 20, 300, 70, 96),
]  # fmt: skip
FLOORS = {"highest": 2e-6, "high": 2.0**-15, "medium": 2.0**-7}  # of the largest value


@pytest.fixture(params=[engine for engine in ("tiles-portable", "amx") if cpu.isa_refusal(engine) is None])
def engine(request: pytest.FixtureRequest) -> str:
    """Those that take float32 and run here."""
    return request.param


@pytest.fixture(autouse=True)
def highest() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    yield
    torch.set_float32_matmul_precision(before)


def floats(*shape: int, **options: object) -> Problem:
    """Small integer queries and keys, and values of all 24 bits."""
    problem = grid(*shape, **options)
    value = torch.randn(problem.value.shape, generator=torch.Generator().manual_seed(1))
    return replace(problem, query=problem.query.float(), key=problem.key.float(), value=value)


def at_random(q_len: int, kv_len: int, head_dim: int, **options: object) -> Problem:
    generator = torch.Generator().manual_seed(2)
    query, key, value = (torch.randn(1, 2, n, head_dim, generator=generator) for n in (q_len, kv_len, kv_len))
    return Problem(query, key, value, scale=head_dim**-0.5, **options)  # type: ignore[arg-type]


def check(problem: Problem, engine: str | ctypes.CDLL, precision: str = "highest", **changes: object) -> None:
    """With and without counts against float64: an error of at most twice that of plain PyTorch, and a floor."""
    torch.set_float32_matmul_precision(precision)
    problem = replace(problem, **changes)  # type: ignore[arg-type]
    exact, plain = reference_of(problem), reference_of(problem, lambda x: x)
    floor = FLOORS[precision] * max(problem.value.abs().max().item() if problem.value.numel() else 0.0, 1.0)
    for sums in (Sums.ROUNDED, Sums.COUNTED):
        got = run(problem, engine, sums)
        assert error(got.out, exact.out) <= 2 * error(plain.out, exact.out) + floor
        assert error(got.logsumexp, exact.logsumexp) <= 2 * error(plain.logsumexp, exact.logsumexp) + 2 * floor
    assert error(got.kept_mass, exact.kept_mass) <= 2 * error(plain.kept_mass, exact.kept_mass) + 2 * floor
    assert torch.equal(got.kept, exact.kept)
    assert torch.equal(got.allowed, exact.allowed)


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_matches_the_reference(method: NM, engine: str):
    for turn, shape in enumerate(SHAPES):
        check(floats(*shape), engine, method=method, causal=turn == 1, scale=-0.25 if turn == 2 else 0.25)
    for precision in ("high", "medium"):  # small integers have one part
        check(floats(*SHAPES[1]), engine, precision, method=method, causal=True)


@pytest.mark.parametrize("method", METHODS[1:4], ids=lambda method: method.name)
def test_masks_blocks_and_strides(method: NM, engine: str):
    problem = floats(4, 2, 40, 90, 16, 24, batch=2, method=method)
    allowed = torch.rand(2, 4, 40, 90, generator=torch.Generator().manual_seed(1)) > 0.4
    allowed[0, 1, 3] = False  # a row with nothing allowed
    bias = torch.randint(-3, 4, (1, 1, 40, 90)).float().masked_fill(~allowed[:1, :1], -math.inf)
    low = torch.zeros(1, 1, 40, 90)
    low[..., 60:], low[..., 7, :] = torch.finfo(torch.float32).min, torch.finfo(torch.float32).min
    for mask in (allowed, torch.arange(90) < torch.tensor([90, 50]).view(2, 1, 1, 1), bias):
        check(problem, engine, mask=mask, causal=True)
    check(problem, engine, mask=low, query=problem.query.index_fill(2, torch.tensor([7]), 0.0))
    check(problem, engine, blocks=some_blocks(problem, 16), block_size=16)
    turned = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in (problem.query, problem.key, problem.value)]
    check(problem, engine, query=turned[0], key=turned[1], value=turned[2])


def test_the_error_is_not_above_that_of_sdpa(engine: str):
    for head_dim in (64, 128):
        p = at_random(40, 256, head_dim, method=NM(1, 1))
        exact = reference_of(p).out
        theirs = torch.nn.functional.scaled_dot_product_attention(p.query, p.key, p.value)
        errors = {}
        for precision in FLOORS:
            torch.set_float32_matmul_precision(precision)
            errors[precision] = (run(p, engine, Sums.ROUNDED).out.double() - exact).square().mean().sqrt().item()
        assert errors["highest"] <= (theirs.double() - exact).square().mean().sqrt().item()
        assert errors["highest"] * 8 < errors["high"] < 2.0**-14
        assert errors["high"] * 8 < errors["medium"] < 2.0**-6


def test_equal_values_are_their_own_mean(engine: str):
    p = at_random(20, 130, 32, method=NM(1, 2))
    for precision in FLOORS:
        torch.set_float32_matmul_precision(precision)
        got = run(replace(p, value=torch.full_like(p.value, 1.5)), engine, Sums.ROUNDED)
        torch.testing.assert_close(got.out, torch.full_like(got.out, 1.5), rtol=1e-6, atol=0)


@pytest.mark.parametrize("which", ["query", "key", "value"])
def test_what_parts_do_not_hold_is_computed_in_float32(which: str, engine: str):
    """NaN, infinity, and numbers whose last part is too small or whose products are too large."""
    problem = floats(2, 1, 40, 90, 16, 24, method=NM(1, 2))
    for bad in (math.nan, math.inf, -math.inf, 1e35, 1e-35):
        x = getattr(problem, which).clone()
        x = x * 1e-35 if bad == 1e-35 else x.index_put((torch.tensor(0),) * 2, torch.tensor(bad))
        odd = replace(problem, **{which: x})
        for sums in (Sums.ROUNDED, Sums.COUNTED):
            for got, want in zip(run(odd, engine, sums), run(odd, cpu.best_isa(), sums), strict=True):
                torch.testing.assert_close(got, want, rtol=0, atol=0, equal_nan=True)


def test_products_too_small_for_parts_are_computed_in_float32(engine: str):
    """Each number has parts, and those of their products vanish, which a large scale would show."""
    p = at_random(40, 90, 16)
    small = replace(p, query=p.query * 2.0**-60, key=p.key * 2.0**-60, scale=2.0**118)
    for got, want in zip(run(small, engine, Sums.ROUNDED), run(small, cpu.best_isa(), Sums.ROUNDED), strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=0, equal_nan=True)


def test_a_bias_may_be_anything(engine: str):
    bias = torch.zeros(1, 1, 40, 90)
    bias[..., 3, 7], bias[..., 4, 7], bias[..., 5, 7], bias[..., 6, 7] = math.nan, math.inf, 3e38, -3e38
    check(floats(2, 1, 40, 90, 16, 24), engine, mask=bias)


@pytest.mark.parametrize("shape", [(0, 2, 5, 5), (1, 2, 0, 5), (1, 2, 5, 0)])
def test_empty(shape: tuple, engine: str):
    batch, heads, q_len, kv_len = shape
    query, key = (torch.randn(batch, heads, length, 8) for length in (q_len, kv_len))
    got = run(Problem(query, key, key), engine)
    assert torch.equal(got.out, torch.zeros(batch, heads, q_len, 8))
    assert torch.equal(got.logsumexp, torch.full((batch, heads, q_len), -math.inf))


def test_gradients_and_dropout_are_refused(engine: str):
    for changes, sums in (({}, Sums.EXACT), ({"dropout_p": 0.5}, Sums.ROUNDED)):
        with pytest.raises(RuntimeError, match="out of its range"):
            run(replace(floats(1, 1, 8, 8, 8, 8), **changes), engine, sums)


BUGS = [
    ("tiles/engine.h", "terms.b[terms.count++] = (sum - i) * b_bytes;", "terms.b[terms.count++] = i * b_bytes;"),
    ("tiles/parts.h", "rest = sub(rest, low_half(bits)), whole", "whole"),
    ("tiles/parts.h", "parts[part * part_dims + d] = take_part(rest);", "parts[d] = take_part(rest);"),
    ("tiles/parts.h", "plan.parts * part_numbers + place % kTileDepth", "part_numbers + place % kTileDepth"),
]


@pytest.mark.sweep
@pytest.mark.skipif(building.unavailable_reason() is not None, reason=str(building.unavailable_reason()))
@pytest.mark.parametrize("number", range(len(BUGS)))
def test_a_bug_is_seen(number: int):
    problem = at_random(20, 90, 40, method=NM(1, 1))
    check(problem, "tiles-portable")
    with pytest.raises(AssertionError):
        check(problem, building.with_bug(*BUGS[number]))  # type: ignore[arg-type]


@pytest.mark.skipif(cpu.isa_refusal("avx512bf16") is not None, reason=str(cpu.isa_refusal("avx512bf16")))
def test_an_engine_without_parts_refuses_float32():
    p = at_random(8, 8, 8)
    with pytest.raises(RuntimeError, match="take longer there than the AVX-512 kernel"):
        dynattn.attention(p.query, p.key, p.value, NM(1, 2), backend="cpu-avx512bf16")
    with pytest.raises(RuntimeError, match="out of its range"):
        run(p, "avx512bf16", Sums.ROUNDED)


def test_the_precision_is_read_at_each_call(engine: str):
    p = at_random(40, 90, 32)

    def attend() -> Tensor:
        return dynattn.attention(p.query, p.key, p.value, NM(1, 2), backend=f"cpu-{engine}")

    highest = attend()
    for precision, products in (("high", "three"), ("medium", "one"), ("highest", "six")):
        torch.set_float32_matmul_precision(precision)
        assert torch.equal(attend(), highest) == (precision == "highest")
        said = str(dynattn.explain(p.query, p.key, p.value, NM(1, 2), backend=f"cpu-{engine}"))
        assert f"float32 by bfloat16 parts, {products} products for one" in said
