"""A wrong result is found and gets no figure."""

from __future__ import annotations

import math

import pytest
import torch

from dynattn.lab.bench import run
from dynattn.lab.bench.cases import Workload
from dynattn.lab.bench.check import Checker
from dynattn.methods import NM
from dynattn.reference import pairs as reference

WORKLOADS = [
    Workload(heads=2, q_len=40, head_dim=16),
    Workload(heads=2, q_len=40, head_dim=16, causal=True),
    Workload(heads=4, kv_heads=2, q_len=1, kv_len=50, head_dim=16),
    Workload(heads=4, kv_heads=2, q_len=33, head_dim=16, dtype="bfloat16", layout="blhd"),
    Workload(batch=2, heads=1, q_len=33, head_dim=16, dtype="float16", causal=True),
]
METHODS = [NM(1, 1), NM(1, 2), NM(2, 4), NM(1, 2, window=8, sinks=2)]


@pytest.mark.parametrize("workload", WORKLOADS, ids=lambda workload: workload.label)
@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_another_methods_result_fails(workload, method):
    query, key, value = inputs = workload.inputs()
    checker = Checker(workload, *inputs)
    for other in METHODS:
        out = reference.forward(query, key, value, other, causal=workload.causal).out
        assert checker.check(out, method).passed == (other == method), other


def _swap_heads(out: torch.Tensor) -> torch.Tensor:
    return out.flip(1)


def _one_row(out: torch.Tensor) -> torch.Tensor:
    out[:, 1, -1] += 1e-4
    return out


def _nan(out: torch.Tensor) -> torch.Tensor:
    out[:, 0, -1, 3] = math.nan
    return out


def _rounded(out: torch.Tensor) -> torch.Tensor:
    return out.bfloat16().float()


def _half_dtype(out: torch.Tensor) -> torch.Tensor:
    return out.half()


def _short(out: torch.Tensor) -> torch.Tensor:
    return out[:, :, 1:]


@pytest.mark.parametrize("spoil", [_swap_heads, _one_row, _nan, _rounded, _half_dtype, _short])
def test_spoiled_results_fail(spoil):
    workload = WORKLOADS[0]
    query, key, value = inputs = workload.inputs()
    checker = Checker(workload, *inputs)
    out = reference.forward(query, key, value, NM(1, 2)).out
    assert checker.check(out, NM(1, 2)).passed
    assert not checker.check(spoil(out), NM(1, 2)).passed


def test_ties_are_judged():
    """The grid has ties; a kernel that gives them to the higher index is wrong, and is found."""
    workload = WORKLOADS[0]
    query, key, value = inputs = workload.inputs()
    scores = reference.scores(query, key, None, False, 0.25)
    pairs = scores.unflatten(-1, (20, 2))
    kept = torch.stack((pairs[..., 0] > pairs[..., 1], pairs[..., 1] >= pairs[..., 0]), dim=-1).flatten(-2)
    out = reference.forward(query, key, value, NM(1, 2), kept=kept).out
    assert not Checker(workload, *inputs).check(out, NM(1, 2)).passed


def test_wrong_function_is_not_timed(monkeypatch):
    """The kernel under test computes 2:4 where 1:2 is asked for: its line has no figure, the others have theirs."""
    monkeypatch.setattr(
        run, "attention", lambda q, k, v, method, **rest: reference.forward(q, k, v, NM(2, 4), causal=False).out
    )
    results = {r.function: r for r in run.measure(WORKLOADS[0], [NM(1, 2), NM(2, 4)], rounds=1)}
    assert not results["nm-1-2"].check.passed
    assert results["nm-1-2"].timing is None
    for name in ("sdpa", "unfused", "nm-2-4"):
        timing = results[name].timing
        assert results[name].check.passed
        assert timing is not None
        assert len(timing.samples) == 1
