"""The sm_90a kernel (TMA, wgmma, wgmma.mma_async.sp) on the emulator against the definition."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from dynattn import NM
from dynattn.kernels.cuda import emulator
from tests.covering import part
from tests.kernels.cuda import emulation
from tests.kernels.cuda.emulation import SCHEDULES, allowed, bias, check, normal, padding, run, simple

pytestmark = pytest.mark.skipif(emulator.unavailable_reason() is not None, reason=str(emulator.unavailable_reason()))

ONE, TWO, BAND = NM(1, 2), NM(2, 4), NM(1, 2, window=64, sinks=4)
ONE_APART, TWO_APART = NM(1, 2, stride=16), NM(2, 4, stride=16)
BAND_APART = NM(2, 4, window=64, sinks=4, stride=16)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("method", [ONE, TWO], ids=lambda method: method.name)
@pytest.mark.parametrize(("q_len", "kv_len"), [(1, 4), (17, 126), (128, 128), (130, 390), (300, 70)])
def test_lengths(q_len: int, kv_len: int, method: NM, causal: bool) -> None:
    problem = simple("wgmma", q_len, kv_len, method=method, causal=causal, seed=q_len)
    check(problem, run(problem))


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("method", [ONE_APART, TWO_APART], ids=lambda method: method.name)
@pytest.mark.parametrize(("q_len", "kv_len"), [(1, 16), (17, 112), (128, 128), (130, 400), (300, 64)])
def test_strided_groups(q_len: int, kv_len: int, method: NM, causal: bool) -> None:
    problem = simple("wgmma", q_len, kv_len, method=method, causal=causal, seed=q_len)
    check(problem, run(problem))


@pytest.mark.parametrize(
    ("head_dim", "value_dim", "method", "dtype"),
    [
        (64, 64, ONE, torch.float16),
        (40, 56, TWO, torch.bfloat16),
        (128, 128, ONE, torch.bfloat16),
        (80, 128, TWO, torch.float16),
        (128, 96, TWO_APART, torch.float16),
    ],
)
def test_head_dims(head_dim: int, value_dim: int, method: NM, dtype: torch.dtype) -> None:
    fields = {"value_dim": value_dim, "method": method, "dtype": dtype, "causal": True}
    problem = simple("wgmma", 70, 400, head_dim, **fields)
    check(problem, run(problem))
    query, key = (normal(1, 1, n, head_dim, seed=n, dtype=dtype) for n in (70, 400))
    random = replace(problem, query=query, key=key, scale=head_dim**-0.5)
    check(random, run(random))


@pytest.mark.parametrize(
    ("kind", "method"),
    part(
        [
            *((kind, method) for kind in ("bool", "padding", "float32", "element") for method in (TWO, BAND, NM(1, 1))),
            ("bool", BAND_APART),
            ("float32", BAND_APART),
        ],
        2,
    ),
)
def test_masks(kind: str, method: NM) -> None:
    mask = {
        "bool": allowed(2, 2, 70, 272, seed=1),
        "padding": padding(2, 272),
        "float32": bias(2, 1, 70, 272, seed=2, dtype=torch.float32),
        "element": bias(70, 272, seed=3, dtype=torch.bfloat16),
    }[kind]
    problem = simple("wgmma", 70, 272, heads=2, kv_heads=1, batch=2, mask=mask, method=method, causal=kind == "bool")
    check(problem, run(problem))


def test_scores_that_are_very_large() -> None:
    problem = emulation.with_large_scores(simple("wgmma", 70, 400, method=ONE, dtype=torch.float16, causal=True))
    check(problem, run(problem))


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("window", "sinks"), [(3, 0), (0, 5), (64, 4), (2**31 - 1, 0)])
def test_window_and_sinks(window: int, sinks: int, causal: bool) -> None:
    problem = simple("wgmma", 200, 600, method=NM(1, 2, window, sinks), causal=causal)
    check(problem, run(problem))


@pytest.mark.parametrize(("head_dim", "method"), [(64, ONE), (128, TWO_APART)])
def test_kept_mass_and_counts(head_dim: int, method: NM) -> None:
    problem = simple("wgmma", 150, 272, head_dim, batch=2, mask=padding(2, 272), method=method, causal=True, aux=True)
    check(problem, run(problem))


def test_groups_strides_and_negative_scale() -> None:
    problem = simple("wgmma", 70, 134, heads=4, kv_heads=2, batch=2, method=TWO, scale=-0.125)
    right = run(problem)
    check(problem, right)
    moved = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in (problem.query, problem.key, problem.value)]
    assert torch.equal(run(replace(problem, query=moved[0], key=moved[1], value=moved[2])).out, right.out)


@pytest.mark.parametrize("method", [ONE, BAND, TWO_APART], ids=lambda method: method.name)
def test_every_schedule_gives_the_same_bits(method: NM) -> None:
    problem = simple("wgmma", 130, 912, method=method, causal=True)
    results = [run(problem, schedule) for schedule in SCHEDULES]
    check(problem, results[0])
    for result in results[1:]:
        assert torch.equal(result.out, results[0].out)


def test_half_of_the_second_product_is_done() -> None:
    counts = run(simple("wgmma", 128, 512, 128)).counts
    groups, tiles = 2, 512 // 128
    assert counts.warpgroup_products == groups * tiles * 128 // 16
    assert counts.sparse_warpgroup_products == groups * tiles * 128 // 32


def test_scores_that_grow_along_the_keys() -> None:
    problem = simple("wgmma", 64, 1024, method=TWO)
    growth = torch.cat([torch.linspace(0, 1, 512), torch.linspace(1, 12, 512)]).view(1, 1, 1024, 1)
    problem = replace(problem, query=problem.query.abs(), key=(problem.key.abs() * growth).bfloat16())
    check(problem, run(problem))


@pytest.mark.parametrize("method", [ONE, TWO, BAND, BAND_APART], ids=lambda method: method.name)
def test_nan_reaches_the_rows_that_keep_it(method: NM) -> None:
    mask = torch.ones(1, 1, 40, 272, dtype=torch.bool)
    mask[..., 10:20] = False
    problem = simple("wgmma", 40, 272, method=method, causal=True, mask=mask)
    problem.value[0, 0, 10:20] = math.nan
    problem.value[0, 0, 260, ::3] = math.inf
    problem.query[0, 0, 7, 3] = math.nan
    result, right = run(problem), emulation.expected(problem)
    finite = right.out.isfinite()
    assert 0 < finite.float().mean() < 1
    assert torch.equal(result.out.isfinite(), finite)
    assert torch.equal(result.out.isnan(), right.out.isnan())
    torch.testing.assert_close(result.out[finite].double(), right.out[finite], rtol=0.02, atol=0.02)
