"""Dropout in the CUDA kernels, on the emulator: which pairs are dropped, outputs and gradients against the definition."""

from __future__ import annotations

from dataclasses import replace

import emulation
import emulation_backward
import pytest
import torch
from emulation import SCHEDULES, Problem, allowed, bias, check, normal, padding, run, simple
from emulation_backward import FEW_BLOCKS, backward_problem, changed

from dynattn import NM
from dynattn.kernels.cuda import emulator
from dynattn.reference import pairs as reference

pytestmark = pytest.mark.skipif(emulator.unavailable_reason() is not None, reason=str(emulator.unavailable_reason()))

ONE, TWO, BAND, DENSE = NM(1, 2), NM(2, 4), NM(1, 2, window=9, sinks=3), NM(1, 1)
METHODS = (ONE, TWO, BAND, NM(2, 4, window=5), NM(1, 2, stride=16), NM(2, 4, stride=4), NM(1, 2, 7, stride=2), DENSE)
P = 0.4


def shown(method: NM, dtype: torch.dtype = torch.bfloat16, **fields) -> Problem:
    """Two samples of four query heads that share two of keys: ``out`` is the weights, none of them too small to see."""
    query, key = (normal(2, heads, 70, 32, seed=heads, dtype=dtype) for heads in (4, 2))
    eye = torch.eye(70, 72, dtype=dtype).expand(2, 2, 70, 72)
    fields = {"causal": True, "scale": 0.01, "kernel": "mma1", "dropout_p": P} | fields
    return Problem(query, key, eye, method, **fields)


def left(problem: Problem) -> torch.Tensor:
    """The pairs that are kept and not dropped."""
    assert problem.drops is not None
    p = problem
    return reference.attend(p.query, p.key, p.value, p.method, None, p.causal, p.scale).kept & (problem.drops > 0)


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_the_pairs_are_the_definitions_forward_and_backward(method: NM) -> None:
    problem = shown(method)
    right = left(problem)
    assert 0.3 < right.sum() / left(replace(problem, dropout_p=1e-12)).sum() < 0.9
    assert torch.equal(run(problem).out[..., :70] > 0, right)
    eye = torch.eye(70, 72, dtype=torch.bfloat16).expand(2, 4, 70, 72)
    for head in range(4):  # the gradient of a value is summed over the heads that share it
        alone = eye * (torch.arange(4) == head).view(1, 4, 1, 1)
        case = replace(emulation_backward.of(problem), grad_out=alone)
        d_value = emulation_backward.run(case).gradients.value[:, head // 2, :, :70]
        assert torch.equal(d_value.mT > 0, right[:, head])


@pytest.mark.parametrize("method", [ONE, TWO, BAND, DENSE], ids=lambda method: method.name)
def test_the_pairs_in_tf32(method: NM) -> None:
    problem = shown(method, torch.float32)
    assert torch.equal(run(problem).out[..., :70] > 0, left(problem))


@pytest.mark.parametrize("method", METHODS[:3], ids=lambda method: method.name)
def test_with_nothing_dropped_it_has_the_bits_of_the_kernel_without(method: NM) -> None:
    forward = simple("mma2", 70, 134, method=method, causal=True)
    nothing = replace(forward, dropout_p=1e-12)  # below 2^-32
    results = [run(problem) for problem in (forward, nothing)]
    assert [result.launch.variant.dropout for result in results] == [False, True]
    assert torch.equal(results[0].out, results[1].out)
    assert torch.equal(results[0].logsumexp, results[1].logsumexp)
    gradients = [emulation_backward.run(emulation_backward.of(problem)).gradients for problem in (forward, nothing)]
    assert all(torch.equal(one, other) for one, other in zip(gradients[0][:3], gradients[1][:3], strict=True))


MASKS = {
    "bool": lambda: allowed(2, 1, 102, 50, seed=3).transpose(2, 3),
    "padding": lambda: padding(2, 102),
    "element": lambda: bias(1, 4, 50, 102, seed=8, dtype=torch.bfloat16),
}


@pytest.mark.parametrize("kind", [*MASKS])
def test_masks_and_kept_mass_which_know_nothing_of_it(kind: str) -> None:
    fields = {"method": BAND, "mask": MASKS[kind](), "batch": 2, "heads": 4, "kv_heads": 2, "aux": True}
    problem = simple("mma1", 50, 102, 32, dropout_p=P, **fields)
    result, without = run(problem), run(replace(problem, dropout_p=0.0))
    check(problem, result)
    for name in ("logsumexp", "kept_mass", "kept", "allowed"):
        assert torch.equal(getattr(result, name), getattr(without, name)), name


@pytest.mark.parametrize(
    ("kernel", "q_len", "kv_len", "head_dim", "method", "dtype"),
    [
        ("mma2", 130, 201, 128, ONE, torch.float16),
        ("mma1", 1, 63, 256, TWO, torch.bfloat16),
        ("mma1", 65, 134, 64, ONE, torch.float32),
        ("mma1", 65, 134, 32, TWO, torch.float32),
    ],
)
def test_sizes_and_dtypes(kernel: str, q_len: int, kv_len: int, head_dim: int, method: NM, dtype: torch.dtype) -> None:
    problem = simple(kernel, q_len, kv_len, head_dim, method=method, dtype=dtype, causal=True, dropout_p=P)
    check(problem, run(problem))


def test_every_schedule_gives_the_same_bits() -> None:
    problem = simple("mma2", 70, 134, method=TWO, causal=True, dropout_p=P)
    results = [run(problem, schedule) for schedule in SCHEDULES]
    check(problem, results[0])
    assert all(torch.equal(result.out, results[0].out) for result in results[1:])


@pytest.mark.parametrize("method", [ONE, NM(2, 4, window=3, stride=16)], ids=lambda method: method.name)
def test_rows_that_are_repaired_drop_the_same_pairs(method: NM) -> None:
    """A NaN of a key that is forbidden makes every row leak; a NaN of one that is dropped is one, as in the definition."""
    problem = simple("mma1", 40, 70, 32, method=method, mask=torch.arange(70) >= 10, causal=True, dropout_p=P)
    problem.value[0, 0, :10] = torch.nan
    check(problem, run(problem))
    problem.value[0, 0, 41] = torch.nan
    right = emulation.expected(problem).out.isnan()
    assert right.any()
    assert torch.equal(run(problem).out.isnan(), right)


@pytest.mark.parametrize(
    ("q_len", "kv_len", "head_dim", "fields"),
    [
        (111, 130, 64, {"method": ONE, "causal": True, "whole": True}),
        (70, 100, 64, {"method": TWO, "heads": 4, "kv_heads": 2, "batch": 2, "device": FEW_BLOCKS}),
        (65, 63, 128, {"method": ONE, "dtype": torch.float16}),
        (50, 75, 256, {"method": TWO, "causal": True}),
        (70, 150, 64, {"method": NM(2, 4, stride=16), "causal": True, "scale": -0.125, "whole": True}),
        (70, 100, 64, {"method": DENSE, "causal": True}),
        (50, 102, 32, {"method": BAND, "mask": MASKS["bool"](), "batch": 2, "heads": 4, "kv_heads": 2}),
    ],
)
def test_gradients(q_len: int, kv_len: int, head_dim: int, fields: dict) -> None:
    problem = backward_problem(q_len, kv_len, head_dim, dropout_p=P, **fields)
    emulation_backward.check(problem, emulation_backward.run(problem))


def test_the_gradient_of_a_bias() -> None:
    fields = {"mask": MASKS["element"](), "mask_gradient": True, "batch": 2, "heads": 4, "kv_heads": 2}
    problem = changed(backward_problem(50, 102, 32, **fields), dropout_p=P)
    emulation_backward.check(problem, emulation_backward.run(problem))
