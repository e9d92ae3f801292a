"""Wrong gradients are found; right ones of every function pass."""

from __future__ import annotations

import pytest
import torch

from dynattn import attention
from dynattn.lab.bench import run
from dynattn.lab.bench.cases import Workload
from dynattn.lab.bench.gradients import check_gradients, with_backward
from dynattn.methods import NM

WORKLOADS = [
    Workload(heads=2, q_len=40, head_dim=16, training=True),
    Workload(batch=2, heads=4, kv_heads=2, q_len=33, head_dim=16, causal=True, training=True),
    Workload(heads=2, q_len=33, head_dim=16, dtype="bfloat16", layout="blhd", training=True),
]


@pytest.mark.parametrize("workload", WORKLOADS, ids=lambda workload: workload.label)
def test_every_function_is_right_and_timed(workload: Workload) -> None:
    results = run.measure(workload, [NM(1, 1), NM(1, 2), NM(2, 4)], rounds=5, seconds=0.1)
    assert [result.function for result in results] == ["sdpa", "unfused", "dense", "nm-1-2", "nm-2-4"]
    for result in results:
        assert result.check.passed, (result.function, result.check)
        assert result.check.rows > 0
        assert result.timing is not None


@pytest.mark.parametrize("which", [0, 1, 2])
@pytest.mark.parametrize("workload", WORKLOADS, ids=lambda workload: workload.label)
def test_a_wrong_gradient_fails(workload: Workload, which: int) -> None:
    inputs = workload.inputs()
    right = with_backward(lambda q, k, v: lambda: attention(q, k, v, NM(1, 2), causal=workload.causal))(*inputs)()
    assert check_gradients(workload, *inputs, right, NM(1, 2)).passed
    wrong = [x.clone() for x in right]
    wrong[which][-1, -1, 3, 2] += 0.1 * wrong[which].abs().max()
    assert not check_gradients(workload, *inputs, tuple(wrong), NM(1, 2)).passed
    assert not check_gradients(workload, *inputs, right, NM(2, 4)).passed
    wrong[which][0, 0, 0, 0] = torch.nan
    assert not check_gradients(workload, *inputs, tuple(wrong), NM(1, 2)).passed


def test_work_of_training() -> None:
    forward, training = (Workload(heads=2, q_len=64, head_dim=32, training=training) for training in (False, True))
    assert training.dense_flops == 3.5 * forward.dense_flops
    assert training.flops(NM(1, 1)) == training.dense_flops
    assert training.flops(NM(1, 2)) == training.dense_flops * 5 / 7
    assert training.bytes == 3 * forward.bytes
    assert training.label == "2×64×32 training"
