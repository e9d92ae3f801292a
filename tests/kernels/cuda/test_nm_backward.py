"""The backward's CUDA kernels, run on the emulator, against the definition: sizes, masks, strides, the choice."""

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
    FEW_BLOCKS,
    MANY_BLOCKS,
    BackwardProblem,
    backward_problem,
    changed,
    check,
    is_rough,
    of,
    row_sums,
    run,
    run_forward,
)

pytestmark = pytest.mark.skipif(emulator.unavailable_reason() is not None, reason=str(emulator.unavailable_reason()))

ONE, TWO, BAND = NM(1, 2), NM(2, 4), NM(1, 2, window=20, sinks=3)
LENGTHS = [(1, 1), (1, 63), (65, 1), (63, 65), (111, 130), (130, 66)]


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("q_len", "kv_len"), LENGTHS)
def test_lengths(q_len: int, kv_len: int, causal: bool) -> None:
    problem = backward_problem(q_len, kv_len, method=ONE, causal=causal, seed=q_len + kv_len, whole=q_len == 111)
    result = run(problem)
    check(problem, result)
    assert result.counts.bank_conflicts == 0


@pytest.mark.parametrize(
    ("head_dim", "value_dim", "method", "dtype"),
    [
        (8, 24, TWO, torch.float16),
        (80, 96, ONE, torch.float16),
        (128, 120, TWO, torch.bfloat16),
        (64, 256, TWO, torch.float16),
    ],
)
def test_head_dims(head_dim: int, value_dim: int, method: NM, dtype: torch.dtype) -> None:
    problem = backward_problem(70, 70, head_dim, value_dim=value_dim, method=method, dtype=dtype, causal=True)
    result = run(problem)
    check(problem, result)
    assert result.counts.bank_conflicts == 0


def test_random_scores() -> None:
    query, key = (normal(1, 1, length, 64, seed=length, dtype=torch.bfloat16) for length in (70, 134))
    problem = changed(backward_problem(70, 134, method=TWO), query=query, key=key)
    check(problem, run(problem))


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("window", "sinks"), [(20, 3), (0, 500)])
def test_window_and_sinks(window: int, sinks: int, causal: bool) -> None:
    problem = backward_problem(70, 200, method=NM(1, 2, window, sinks), causal=causal)
    check(problem, run(problem))


def test_window_with_two_of_four() -> None:
    problem = backward_problem(70, 100, method=NM(2, 4, window=5))
    check(problem, run(problem))


def test_groups_of_keys_that_stand_apart() -> None:
    problem = backward_problem(50, 150, method=NM(2, 4, stride=16), causal=True)
    check(problem, run(problem))


def test_dense() -> None:
    problem = backward_problem(70, 100, method=NM(2, 2), causal=True)
    check(problem, run(problem))


@pytest.mark.parametrize("kind", ["bool", "few", "padding"])
def test_masks(kind: str) -> None:
    mask = {
        "bool": allowed(2, 1, 102, 50, seed=3).transpose(2, 3),  # keys apart
        "few": allowed(2, 4, 50, 102, seed=5, share=0.02),  # most rows keep nothing
        "padding": padding(2, 102),
    }[kind]
    problem = backward_problem(50, 102, 32, mask=mask, batch=2, heads=4, kv_heads=2, whole=kind == "few")
    result = run(problem)
    check(problem, result)
    assert kind == "bool" or (result.logsumexp == -math.inf).any()


@pytest.mark.parametrize(("method", "kind"), [(ONE, "element"), (NM(1, 2, window=7, sinks=3, stride=4), "float32")])
def test_biases_and_their_gradient(method: NM, kind: str) -> None:
    mask = {
        "element": bias(4, 50, 107, seed=9, dtype=torch.bfloat16)[..., 5:],
        "float32": bias(2, 1, 1, 102, seed=6, dtype=torch.float32),
    }[kind]
    fields = {"batch": 2, "heads": 4, "kv_heads": 2, "mask": mask, "causal": kind == "float32"}
    problem = backward_problem(50, 102, 32, method=method, mask_gradient=True, **fields)
    result = run(problem)
    check(problem, result)
    alone = run(replace(problem, mask_gradient=False)).gradients
    assert alone.mask is None
    assert all(torch.equal(got, want) for got, want in zip(alone[:3], result.gradients[:3], strict=True))


@pytest.mark.parametrize("device", [FEW_BLOCKS, MANY_BLOCKS], ids=["few blocks", "many blocks"])
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 2), (3, 1)])
def test_groups_of_heads_and_deals_of_keys(heads: int, kv_heads: int, device) -> None:
    problem = backward_problem(20, 150, heads=heads, kv_heads=kv_heads, causal=True, device=device)
    result = run(problem)
    check(problem, result)
    assert result.launches.main.params.splits == {FEW_BLOCKS: 2 // kv_heads, MANY_BLOCKS: 3}[device]


def test_a_negative_scale() -> None:
    problem = backward_problem(70, 100, scale=-0.125, whole=True)
    check(problem, run(problem))


def test_strides() -> None:
    problem = backward_problem(20, 70, heads=4, kv_heads=2, batch=2)
    right = run(problem)
    p = problem.forward
    moved = lambda x: x.transpose(1, 2).contiguous().transpose(1, 2)  # noqa: E731
    narrow = lambda x: torch.cat([x.new_full((*x.shape[:3], 1), math.nan), x], -1)[..., 1:]  # noqa: E731
    for change in (moved, narrow):
        other = changed(problem, query=change(p.query), key=change(p.key), value=change(p.value))
        other = replace(other, grad_out=change(problem.grad_out), grad_logsumexp=problem.grad_logsumexp.mT.clone().mT)
        for got, want in zip(run(other).gradients[:3], right.gradients[:3], strict=True):
            assert torch.equal(got, want)
    one = changed(problem, key=p.key[:1, :1].expand_as(p.key), value=p.value[:1, :1].expand_as(p.value))
    one = replace(one, grad_out=problem.grad_out[..., :1, :].expand_as(problem.grad_out))
    check(one, run(one))


def test_nothing_to_do() -> None:
    problem = backward_problem(5, 8, batch=2)
    p = problem.forward
    none = replace(changed(problem, query=p.query[:0], key=p.key[:0], value=p.value[:0]),
                   grad_out=problem.grad_out[:0], grad_logsumexp=problem.grad_logsumexp[:0])  # fmt: skip
    assert [launch.blocks for launch in run(none).launches] == [0, 0, 0, 0]
    no_queries = replace(changed(problem, query=p.query[:, :, :0]), grad_out=problem.grad_out[:, :, :0],
                         grad_logsumexp=problem.grad_logsumexp[:, :, :0])  # fmt: skip
    gradients = run(no_queries).gradients
    assert (gradients.key == 0).all()
    assert (gradients.value == 0).all()
    no_keys = changed(problem, key=p.key[:, :, :0], value=p.value[:, :, :0])
    assert (run(no_keys).gradients.query == 0).all()


def test_values_under_a_mask_may_be_anything() -> None:
    mask = (torch.arange(102) < 40).view(1, 1, 1, 102)
    problem = backward_problem(50, 102, 32, mask=mask)
    value = problem.forward.value.clone()
    value[:, :, 40:] = torch.tensor([math.nan, math.inf]).repeat(31).view(62, 1)
    spoilt = run(changed(problem, value=value))
    for got, want in zip(spoilt.gradients[:3], run(problem).gradients[:3], strict=True):
        assert torch.equal(got, want)


@pytest.mark.parametrize("where", ["query", "value", "grad_out"])
def test_nan_is_not_lost(where: str) -> None:
    problem = backward_problem(40, 70)
    row = 7
    if where == "grad_out":
        problem.grad_out[0, 0, row, 3] = math.nan
    else:
        getattr(problem.forward, where)[0, 0, row, 3] = math.nan
    gradients = run(problem).gradients
    touched = slice(None) if where == "value" else row  # a value's NaN reaches the rows that keep it
    assert gradients.query[0, 0, touched].isnan().any()
    clean = [i for i in range(40) if i != row]
    assert where == "value" or gradients.query[0, 0, clean].isfinite().all()
    assert gradients.key.isnan().any()


@pytest.mark.parametrize("method", [ONE, BAND], ids=lambda method: method.name)
def test_every_schedule_gives_the_same_bits(method: NM) -> None:
    problem = backward_problem(70, 134, heads=2, kv_heads=1, method=method, causal=True, device=FEW_BLOCKS)
    results = [run(problem, schedule) for schedule in SCHEDULES]
    check(problem, results[0])
    for result in results[1:]:
        for got, want in zip(result.gradients[:3], results[0].gradients[:3], strict=True):
            assert torch.equal(got, want)


def test_the_product_with_keys_is_sparse() -> None:
    counts = run(backward_problem(128, 256)).counts
    warps, tiles, row_tiles = 4, 256 // 64, 2
    dense = warps * tiles * row_tiles * 8 * (64 // 16)  # of one product of 128 queries, 256 keys and 64 columns
    assert counts.products == 4 * dense
    assert counts.sparse_products == dense // 2  # each stands for two dense ones and takes as long as one


def near_ties(method: NM, mask: Tensor | None, seed: int) -> BackwardProblem:
    """Groups whose scores are equal but for the order of the sum: what rounding makes of that decides."""
    period = 64 // method.m
    query = normal(1, 1, 64, period, seed=seed, dtype=torch.bfloat16).repeat(1, 1, 1, method.m)
    first = normal(1, 1, 64 // method.m, 64, seed=seed + 1, dtype=torch.bfloat16)
    key = torch.stack([first.roll(i * period, -1) for i in range(method.m)], 3).flatten(2, 3)
    eye = torch.eye(64, dtype=torch.bfloat16).view(1, 1, 64, 64)  # out is P then, and so is the value's gradient
    forward = Problem(query, key, eye, method, mask, scale=0.125 / 16)
    return replace(of(forward, device=MANY_BLOCKS), grad_out=eye)


@pytest.mark.parametrize(("method", "scale"), [(ONE, 0.125), (TWO, -0.125)], ids=["1:2", "2:4"])
def test_rows_whose_logsumexp_is_rounded(method: NM, scale: float) -> None:
    """Scores so large in size that nothing is left of the logarithm of their number, beside others."""
    fields = {"method": method, "scale": scale, "causal": True, "heads": 2, "kv_heads": 1, "batch": 2}
    problem = backward_problem(70, 134, **fields, whole=True, device=MANY_BLOCKS)
    problem = replace(problem, forward=with_large_scores(problem.forward))
    out, _ = run_forward(problem)
    result = run(problem)
    assert 0.1 < is_rough(result.logsumexp).float().mean() < 0.2
    assert torch.equal(result.out, out), "sums are all that the forward's kernel writes there"
    check(problem, result)


def test_rows_under_a_bias_that_is_very_low_or_high() -> None:
    mask = torch.zeros(64, 100)
    rows = {3: torch.finfo(torch.float32).min, 9: -1e9, 20: -1e4, 33: 1e9, 63: -2000.0}
    for row, low in rows.items():
        mask[row] = low
    mask[9, :40], mask[5, 30:] = -math.inf, torch.finfo(torch.float32).min
    problem = backward_problem(64, 100, heads=2, kv_heads=1, method=BAND, mask=mask, mask_gradient=True, whole=True)
    problem.forward.query[:, :, [*rows]] = 0  # so that no bias rounds a score
    result = run(problem)
    assert is_rough(result.logsumexp)[0].nonzero()[:, 1].tolist() == 2 * [*rows]
    check(problem, result)


def test_sums_of_rows_are_made_only_in_blocks_that_need_them() -> None:
    problem = backward_problem(140, 70, whole=True, device=MANY_BLOCKS)
    problem.forward.query[:, :, 5] = 0
    problem.forward.query[:, :, 5, 0], problem.forward.key[..., 0] = 32768, 4
    result = run(problem)
    sums = row_sums(result.launches)[0, 0]
    assert sums[64:].isnan().all()
    assert sums[5].tolist() == [131072, 35]  # the score before it is scaled, and one of each pair of 70 keys
    check(problem, result)


@pytest.mark.parametrize(("method", "kind"), [(ONE, "none"), (TWO, "none"), (BAND, "bias")])
def test_the_choice_is_the_forwards(method: NM, kind: str) -> None:
    mask = normal(64, 1, seed=3, dtype=torch.float32).expand(64, 64) if kind == "bias" else None
    rounding_decided = 0
    for seed in range(2):
        problem = near_ties(method, mask, seed)
        kept = run_forward(problem)[0][0, 0] > 0
        assert torch.equal(run(problem).gradients.value[0, 0].mT > 0, kept)
        rounding_decided += int((~kept[:, :: method.m]).sum())  # in exact arithmetic the first of a group is kept
    assert rounding_decided > 20, "the case must have near-ties"
