"""The backward for sm_90a (TMA, wgmma) on the emulator, against the definition: sizes, masks, the choice, the bits."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from dynattn import NM
from dynattn.kernels.cuda import emulator
from tests.kernels.cuda.emulation import SCHEDULES, Problem, allowed, bias, normal, padding, with_large_scores
from tests.kernels.cuda.emulation_backward import (
    HOPPER,
    HOPPER_FEW_BLOCKS,
    BackwardProblem,
    backward_problem,
    changed,
    check,
    is_rough,
    of,
    run,
    run_forward,
)

pytestmark = pytest.mark.skipif(emulator.unavailable_reason() is not None, reason=str(emulator.unavailable_reason()))

ONE, TWO, APART, BAND = NM(1, 2), NM(2, 4), NM(2, 4, stride=16), NM(1, 2, window=20, sinks=3)


def problem_of(q_len: int, kv_len: int, head_dim: int = 64, **fields) -> BackwardProblem:
    return backward_problem(q_len, kv_len, head_dim, **{"device": HOPPER, **fields})


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("q_len", "kv_len"), [(1, 4), (17, 126), (130, 66), (70, 302)])
def test_lengths(q_len: int, kv_len: int, causal: bool) -> None:
    problem = problem_of(q_len, kv_len, method=ONE, causal=causal, seed=q_len + kv_len)
    result = run(problem)
    check(problem, result)
    assert result.counts.bank_conflicts == 0


@pytest.mark.parametrize(
    ("q_len", "kv_len", "head_dim", "value_dim", "fields"),
    [
        (70, 190, 128, 128, {"causal": True, "whole": True}),
        (20, 130, 80, 120, {"device": HOPPER_FEW_BLOCKS, "scale": -0.125}),
    ],
)
def test_wide_heads(q_len: int, kv_len: int, head_dim: int, value_dim: int, fields: dict) -> None:
    problem = problem_of(q_len, kv_len, head_dim, value_dim=value_dim, method=TWO, **fields)
    result = run(problem)
    check(problem, result)
    assert result.counts.bank_conflicts == 0


def test_random_scores_and_a_negative_scale() -> None:
    query, key = (normal(1, 1, length, 64, seed=length, dtype=torch.bfloat16) for length in (70, 134))
    problem = changed(problem_of(70, 134, method=ONE, whole=True), query=query, key=key, scale=-0.125)
    check(problem, run(problem))


@pytest.mark.parametrize("kind", ["bool", "few", "padding"])
def test_masks_and_groups_of_keys_that_stand_apart(kind: str) -> None:
    mask = {
        "bool": allowed(2, 1, 144, 50, seed=3).transpose(2, 3),  # keys apart
        "few": allowed(2, 4, 50, 144, seed=5, share=0.02),  # most rows keep nothing
        "padding": padding(2, 144),
    }[kind]
    fields = {"mask": mask, "batch": 2, "heads": 4, "kv_heads": 2, "causal": kind == "bool"}
    problem = problem_of(50, 144, method=APART, **fields)
    result = run(problem)
    check(problem, result)
    assert kind == "bool" or (result.logsumexp == -math.inf).any()
    if kind == "padding":
        value = problem.forward.value.clone()
        value[-1] = math.nan  # the last sequence has no keys: its values may be anything
        check(problem, run(changed(problem, value=value)))


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("method", [BAND, NM(1, 2, sinks=500), NM(1, 1)], ids=lambda method: method.name)
def test_window_and_sinks_and_dense(method: NM, causal: bool) -> None:
    problem = problem_of(70, 330, method=method, causal=causal)
    check(problem, run(problem))


def test_a_bias_and_its_gradient() -> None:
    """And a window, whose tiles are two sets of survivors."""
    mask = bias(4, 50, 157, seed=9, dtype=torch.bfloat16)[..., 5:]
    fields = {"method": NM(2, 4, window=7, sinks=3), "mask": mask, "batch": 2, "heads": 4, "kv_heads": 2}
    problem = problem_of(50, 152, 128, mask_gradient=True, **fields)
    result = run(problem)
    check(problem, result)
    alone = run(replace(problem, mask_gradient=False)).gradients
    assert all(torch.equal(got, want) for got, want in zip(alone[:3], result.gradients[:3], strict=True))


def test_every_schedule_gives_the_same_bits() -> None:
    """Three query tiles a head in three stages, two tiles of keys a block: everything is overwritten at some time."""
    problem = problem_of(180, 300, heads=2, kv_heads=1, method=ONE, causal=True, device=HOPPER_FEW_BLOCKS)
    results = [run(problem, schedule) for schedule in SCHEDULES]
    check(problem, results[0])
    assert results[0].launches.main.params.splits == 1
    for result in results[1:]:
        for got, want in zip(result.gradients[:3], results[0].gradients[:3], strict=True):
            assert torch.equal(got, want)


def test_rows_whose_logsumexp_is_rounded() -> None:
    """Scores so large in size that nothing is left of the logarithm of their number, beside others."""
    fields = {"method": ONE, "heads": 2, "kv_heads": 1, "causal": True, "scale": -0.125, "whole": True}
    problem = problem_of(70, 134, **fields)
    problem = replace(problem, forward=with_large_scores(problem.forward))
    result = run(problem)
    assert is_rough(result.logsumexp).any()
    check(problem, result)


def test_strides() -> None:
    problem = problem_of(20, 70, heads=4, kv_heads=2, batch=2)
    right = run(problem)
    p = problem.forward
    moved = lambda x: x.transpose(1, 2).contiguous().transpose(1, 2)  # noqa: E731
    other = changed(problem, query=moved(p.query), key=moved(p.key), value=moved(p.value))
    other = replace(other, grad_out=moved(problem.grad_out), grad_logsumexp=problem.grad_logsumexp.mT.clone().mT)
    assert all(torch.equal(*pair) for pair in zip(run(other).gradients[:3], right.gradients[:3], strict=True))
    one = replace(problem, grad_out=problem.grad_out[..., :1, :].expand_as(problem.grad_out))
    check(one, run(one))


def test_nan_is_not_lost() -> None:
    problem = problem_of(40, 70)
    problem.grad_out[0, 0, 7, 3] = math.nan
    gradients = run(problem).gradients
    clean = [row for row in range(40) if row != 7]
    assert gradients.query[0, 0, 7].isnan().any()
    assert gradients.query[0, 0, clean].isfinite().all()
    assert gradients.key.isnan().any()


def test_the_product_with_keys_is_sparse() -> None:
    counts = run(problem_of(128, 256)).counts
    tiles = 128 // 64 * 256 // 64
    assert counts.warpgroup_products == 4 * tiles * 64 // 16  # each 64 by 64 by 16
    assert counts.sparse_warpgroup_products == tiles * 64 // 32  # 64 by 64 by 32, in the time of one of those


def near_ties(method: NM, head_dim: int, seed: int) -> BackwardProblem:
    """Groups whose scores are equal but for the order of the sum: what rounding makes of that decides."""
    period = head_dim // method.m
    query = normal(1, 1, 64, period, seed=seed, dtype=torch.bfloat16).repeat(1, 1, 1, method.m)
    first = normal(1, 1, 64 // method.m, head_dim, seed=seed + 1, dtype=torch.bfloat16)
    key = torch.stack([first.roll(i * period, -1) for i in range(method.m)], 3).flatten(2, 3)
    eye = torch.eye(64, head_dim, dtype=torch.bfloat16).view(1, 1, 64, head_dim)  # out is P, and so is dV
    return replace(of(Problem(query, key, eye, method, scale=0.125 / 16), device=HOPPER), grad_out=eye)


def kept(p: Tensor) -> Tensor:
    return p[0, 0, :, :64] > 0


@pytest.mark.parametrize(("method", "head_dim"), [(ONE, 64), (TWO, 128)])
def test_the_choice_is_the_forwards(method: NM, head_dim: int) -> None:
    rounding_decided = 0
    for seed in range(2):
        problem = near_ties(method, head_dim, seed)
        by_forward = kept(run_forward(problem)[0])
        assert torch.equal(kept(run(problem).gradients.value).mT, by_forward)
        rounding_decided += int((~by_forward[:, :: method.m]).sum())  # in exact arithmetic the first of a group is kept
    assert rounding_decided > 20, "the case must have near-ties"
