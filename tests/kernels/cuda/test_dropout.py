"""Dropout in the CUDA kernels, on the emulator, against the definition: which pairs are dropped, outputs, gradients."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from dynattn import NM
from dynattn.kernels.cuda import emulator
from dynattn.reference import pairs as reference
from tests.covering import part
from tests.kernels.cuda import emulation, emulation_backward
from tests.kernels.cuda.emulation import SCHEDULES, Problem, allowed, bias, check, grid, padding, run, simple
from tests.kernels.cuda.emulation_backward import FEW_BLOCKS, BackwardProblem, backward_problem

pytestmark = pytest.mark.skipif(emulator.unavailable_reason() is not None, reason=str(emulator.unavailable_reason()))

ONE, TWO, BAND, DENSE = NM(1, 2), NM(2, 4), NM(1, 2, window=9, sinks=3), NM(1, 1)
TWO_APART = NM(2, 4, window=5, stride=4)  # whose window touches some tiles
METHODS = (ONE, BAND, DENSE, NM(1, 2, stride=16), TWO_APART)
P = 0.4
Q_LEN, KV_LEN, COLUMNS = 64, 127, 128


def shown(method: NM, dtype: torch.dtype = torch.bfloat16, dropout_p: float = P) -> Problem:
    """Two samples of two query heads that share one of keys: ``out`` is the weights, none of them too small to see."""
    query, key = (grid(2, h, n, 32, seed=h, dtype=dtype) for h, n in ((2, Q_LEN), (1, KV_LEN)))
    eye = torch.eye(KV_LEN, COLUMNS, dtype=dtype).expand(2, 1, -1, -1)
    return Problem(query, key, eye, method, causal=True, scale=0.01, kernel="mma1", dropout_p=dropout_p)


def shown_backward(problem: Problem) -> BackwardProblem:
    """The gradient of the values is the weights of both heads that share them, each in columns of its own."""
    eye = torch.eye(COLUMNS, dtype=torch.bfloat16).view(2, Q_LEN, COLUMNS)
    return replace(emulation_backward.of(problem), grad_out=eye.repeat(2, 1, 1, 1))


def left(problem: Problem) -> torch.Tensor:
    """The pairs that are kept and not dropped, (batch, heads, q_len, kv_len)."""
    p = problem
    assert p.drops is not None
    return reference.attend(p.query, p.key, p.value, p.method, None, p.causal, p.scale).kept & (p.drops > 0)


@pytest.mark.parametrize("method", part(METHODS, 2, lambda method: method.name))
def test_the_pairs_are_the_definitions_forward_and_backward(method: NM) -> None:
    problem = shown(method)
    right = left(problem)
    assert 0.5 < right.sum() / left(replace(problem, dropout_p=1e-12)).sum() < 0.7
    assert torch.equal(run(problem).out[..., :KV_LEN] > 0, right)
    d_value = emulation_backward.run(shown_backward(problem)).gradients.value
    assert torch.equal(d_value.unflatten(-1, (2, Q_LEN)).permute(0, 1, 3, 4, 2).flatten(1, 2) > 0, right)


@pytest.mark.parametrize("method", [ONE, BAND], ids=lambda method: method.name)
def test_the_pairs_in_tf32(method: NM) -> None:
    problem = shown(method, torch.float32)
    assert torch.equal(run(problem).out[..., :KV_LEN] > 0, left(problem))


def test_with_nothing_dropped_it_has_the_bits_of_the_kernel_without() -> None:
    """A window of which some tiles have nothing: both ways through the kernel."""
    without, with_it = (shown(BAND, dropout_p=p) for p in (0.0, 1e-12))  # of which the second is below 2^-32
    results = [run(problem) for problem in (without, with_it)]
    assert [result.launch.variant.dropout for result in results] == [False, True]
    assert torch.equal(results[0].out, results[1].out)
    assert torch.equal(results[0].logsumexp, results[1].logsumexp)
    gradients = [emulation_backward.run(shown_backward(problem)).gradients for problem in (without, with_it)]
    assert all(torch.equal(one, other) for one, other in zip(gradients[0][:3], gradients[1][:3], strict=True))


def masked(kind: str) -> dict:
    """Two samples of 50 queries and 102 keys."""
    mask = {
        "bool": lambda: allowed(2, 1, 102, 50, seed=3).transpose(2, 3),
        "padding": lambda: padding(2, 102),
        "element": lambda: bias(1, 4, 50, 102, seed=8, dtype=torch.bfloat16),
    }[kind]()
    return {"method": BAND, "mask": mask, "batch": 2, "heads": 4, "kv_heads": 2, "dropout_p": P}


@pytest.mark.parametrize("kind", ["bool", "padding"])
def test_masks_and_kept_mass_which_knows_nothing_of_it(kind: str) -> None:
    problem = simple("mma1", 50, 102, 32, aux=True, **masked(kind))
    check(problem, run(problem))


@pytest.mark.parametrize(
    ("kernel", "q_len", "kv_len", "head_dim", "method", "dtype"),
    [
        ("mma2", 130, 201, 64, TWO, torch.float16),
        ("mma1", 1, 63, 256, TWO, torch.bfloat16),
        ("mma1", 65, 134, 128, TWO_APART, torch.bfloat16),
        ("mma1", 65, 134, 128, ONE, torch.float32),
    ],
)
def test_sizes_and_dtypes(kernel: str, q_len: int, kv_len: int, head_dim: int, method: NM, dtype: torch.dtype) -> None:
    problem = simple(kernel, q_len, kv_len, head_dim, method=method, dtype=dtype, causal=True, dropout_p=P)
    results = [run(problem, schedule) for schedule in SCHEDULES[:: 3 if head_dim == 128 else 4]]
    check(problem, results[0])
    assert all(torch.equal(result.out, results[0].out) for result in results[1:])


def test_rows_that_are_repaired_drop_the_same_pairs() -> None:
    """A NaN of forbidden keys makes every row leak; a NaN of one that is dropped is one, as in the definition."""
    mask = (torch.arange(70) >= 10).view(1, 1, 1, 70)
    problem = simple("mma1", 40, 70, 32, method=BAND, mask=mask, causal=True, aux=True, dropout_p=P)
    problem.value[0, 0, :10] = torch.nan
    check(problem, run(problem))
    problem.value[0, 0, 41] = torch.nan
    right = emulation.expected(problem).out.isnan()
    assert 0 < right.float().mean() < 1
    assert torch.equal(run(problem).out.isnan(), right)


@pytest.mark.parametrize(
    ("q_len", "kv_len", "head_dim", "fields"),
    [
        (111, 130, 64, {"method": ONE, "causal": True}),
        (70, 100, 128, {"method": TWO_APART, "heads": 2, "kv_heads": 1, "batch": 2, "device": FEW_BLOCKS}),
        (50, 75, 256, {"method": TWO, "causal": True}),
        (70, 150, 128, {"method": NM(1, 2, stride=16), "causal": True, "scale": -0.125, "whole": True}),
        (70, 100, 128, {"method": DENSE, "causal": True}),
        (50, 102, 32, {**masked("element"), "mask_gradient": True}),
    ],
)
def test_gradients(q_len: int, kv_len: int, head_dim: int, fields: dict) -> None:
    problem = backward_problem(q_len, kv_len, head_dim, **{"dropout_p": P, **fields})
    emulation_backward.check(problem, emulation_backward.run(problem))


def test_gradients_of_rows_whose_logsumexp_is_rounded() -> None:
    fields = {"method": NM(1, 2, stride=16), "causal": True, "scale": -0.125, "whole": True}
    problem = backward_problem(70, 150, 128, dropout_p=P, **fields)
    problem = replace(problem, forward=emulation.with_large_scores(problem.forward))
    emulation_backward.check(problem, emulation_backward.run(problem))
