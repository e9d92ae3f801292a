"""Peers compute dense attention."""

from __future__ import annotations

import pytest

from dynattn.lab.bench.cases import Workload
from dynattn.lab.bench.check import Checker
from dynattn.lab.bench.peers import peers
from dynattn.methods import NM

WORKLOADS = [
    Workload(heads=2, q_len=40, head_dim=16),
    Workload(heads=2, q_len=40, head_dim=16, causal=True),
    Workload(heads=4, kv_heads=2, q_len=1, kv_len=50, head_dim=16),
    Workload(heads=4, kv_heads=2, q_len=33, head_dim=16, dtype="bfloat16", layout="blhd"),
    Workload(batch=2, heads=1, q_len=33, head_dim=16, dtype="float16", causal=True),
]


@pytest.mark.parametrize("workload", WORKLOADS, ids=lambda workload: workload.label)
def test_peers_are_dense_attention(workload):
    inputs = workload.inputs()
    for name, make in peers(workload).items():
        check = Checker(workload, *inputs).check(make(workload, *inputs)(), NM(1, 1))
        assert check.passed, (name, check)
        assert check.rows == workload.batch * workload.heads * min(workload.q_len, 25)
