"""float32 inputs, rounded to TF32 in the kernel, on the emulator against the definition."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from dynattn import NM
from dynattn.kernels.cuda import emulator
from tests.kernels.cuda import emulation
from tests.kernels.cuda.emulation import SCHEDULES, allowed, bias, check, normal, padding, run, simple, tf32

pytestmark = pytest.mark.skipif(emulator.unavailable_reason() is not None, reason=str(emulator.unavailable_reason()))

ONE, TWO = NM(1, 2), NM(2, 4)
METHODS = (ONE, TWO, NM(1, 2, window=9, sinks=3), NM(1, 2, stride=16), NM(1, 1))


def words(*shape: int, **fields) -> emulation.Problem:
    return simple("mma1", *shape, dtype=torch.float32, **fields)


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_methods(method: NM) -> None:
    problem = words(70, 134, 32, method=method, causal=True, aux=True)
    check(problem, run(problem))


def test_scores_that_are_very_large() -> None:
    problem = emulation.with_large_scores(words(70, 134, 32, method=TWO, causal=True, aux=True))
    check(problem, run(problem))


@pytest.mark.parametrize(("q_len", "kv_len"), [(1, 1), (5, 63), (130, 64)])
def test_lengths(q_len: int, kv_len: int) -> None:
    problem = words(q_len, kv_len, 32, aux=True)
    check(problem, run(problem))


@pytest.mark.parametrize(("head_dim", "value_dim"), [(8, 24), (64, 64), (96, 72), (128, 128)])
def test_head_dims(head_dim: int, value_dim: int) -> None:
    problem = words(70, 134, head_dim, value_dim=value_dim)
    result = run(problem)
    check(problem, result)
    assert result.counts.bank_conflicts == 0
    query, key = (tf32(normal(1, 1, n, head_dim, seed=n, dtype=torch.float32)) for n in (70, 134))
    random = replace(problem, query=query, key=key)
    check(random, run(random))


def test_it_rounds_its_inputs_to_the_nearest() -> None:
    query, key, value = (normal(1, 1, 70, 32, seed=seed, dtype=torch.float32) for seed in range(3))
    problem = replace(words(70, 70, 32, aux=True), query=query, key=key, value=value, scale=-0.2)
    rounded = replace(problem, query=tf32(query), key=tf32(key), value=tf32(value))
    assert not torch.equal(rounded.query, query)
    assert torch.equal(run(problem).out, run(rounded).out)


@pytest.mark.parametrize("kind", ["bool", "padding", "float32", "half"])
def test_masks(kind: str) -> None:
    mask = {
        "bool": allowed(2, 4, 50, 102, seed=1),
        "padding": padding(2, 102),
        "float32": bias(2, 1, 50, 102, seed=2, dtype=torch.float32),
        "half": bias(50, 102, seed=3, dtype=torch.float16),
    }[kind]
    problem = words(50, 102, 32, heads=4, kv_heads=2, batch=2, mask=mask, method=replace(ONE, window=7), aux=True)
    check(problem, run(problem))


def test_half_of_the_second_product_is_done_for_pairs_and_all_of_it_for_fours() -> None:
    warps, tiles, head_dim = 4, 128 // 64, 64
    counts = run(words(64, 128, head_dim)).counts
    assert counts.products == warps * tiles * (64 // 8) * (head_dim // 8)
    assert counts.sparse_products == warps * tiles * (64 // 16) * (head_dim // 8)
    fours = run(words(64, 128, 32, method=TWO, aux=True)).counts  # of half the columns
    assert fours.sparse_products == counts.sparse_products


def test_every_schedule_gives_the_same_bits() -> None:
    problem = words(70, 206, 64, causal=True)
    results = [run(problem, schedule) for schedule in SCHEDULES]
    check(problem, results[0])
    assert all(torch.equal(result.out, results[0].out) for result in results[1:])


def test_what_is_not_finite_reaches_the_rows_that_keep_it() -> None:
    mask = torch.ones(1, 1, 40, 70, dtype=torch.bool)
    mask[..., 10:20] = False
    problem = words(40, 70, 32, method=replace(ONE, window=3), causal=True, mask=mask, aux=True)
    problem.value[0, 0, 10:20] = math.nan
    problem.value[0, 0, 60, ::3] = math.inf
    problem.query[0, 0, 7, 3] = math.nan
    result, right = run(problem), emulation.expected(problem)
    finite = right.out.isfinite()
    assert 0 < finite.float().mean() < 1
    assert torch.equal(result.out.isfinite(), finite)
    torch.testing.assert_close(result.out[finite].double(), right.out[finite], rtol=2e-3, atol=2e-3)
