"""Suites: distinct cases, of the shapes that the targets name."""

from __future__ import annotations

import pytest

from dynattn.lab.bench import run
from dynattn.lab.bench.suites import suite, suites
from dynattn.methods import NM


@pytest.mark.parametrize(("name", "device"), [(name, device) for device in ("cpu", "cuda") for name in suites(device)])
def test_suites_have_distinct_cases(name, device):
    cases = suite(name, device)
    assert len(set(cases)) == len(cases)
    labels = {case.workload: case.workload.label for case in cases}
    assert len(set(labels.values())) == len(labels)


def test_target_shapes():
    cases = suite("targets")
    main = {(48, 384, 64), (48, 512, 64), (24, 1024, 64), (12, 2048, 64), (6, 4096, 64), (12, 512, 32), (12, 1024, 128)}
    shapes = {(w.batch * w.heads, w.q_len, w.head_dim, w.causal) for w in (case.workload for case in cases)}
    assert shapes == {(*s, False) for s in main} | {(*s, True) for s in main if s[1] >= 1024}
    assert {case.workload.causal for case in cases if case.method.window == 64} == {False, True}


def test_a_call_has_hardly_any_arithmetic_and_takes_the_short_way():
    """The suite that records what a call costs; its plain forward is the one whose plan is kept."""
    workloads = {case.workload for case in suite("call")}
    assert [w.q_len * w.kv_len * w.heads * w.batch for w in sorted(workloads, key=lambda w: w.q_len)] == [1, 16]
    assert {case.method.name for case in suite("call")} == {"dense", "nm-1-2", "nm-2-4"}
    for workload in workloads:
        results = run.measure(workload, [NM(1, 2)], rounds=1, seconds=0.01)
        assert all(result.check.passed and result.timing is not None for result in results)
        assert results[-1].backend.startswith("cpu")


def test_gpu_shapes():
    """The paper's own, and as many tokens at every length; in bfloat16, dense attention as torch has it."""
    paper = {(w.batch, w.heads, w.q_len, w.head_dim, w.dtype) for w in (c.workload for c in suite("paper", "cuda"))}
    assert paper == {(48, 4, n, 64, "bfloat16") for n in (256, 512, 1024, 2048)} | {(24, 4, 4096, 64, "bfloat16")}
    targets = suite("targets", "cuda")
    assert {case.workload.q_len for case in targets} == {384, 512, 1024, 2048, 4096, 8192, 16384, 32768}
    assert {(case.workload.head_dim, case.workload.causal) for case in targets} == {
        (64, False), (64, True), (128, False), (128, True)
    }  # fmt: skip
    assert {case.method.name for case in targets} == {
        "nm-1-2", "nm-2-4", "nm-1-2-x16", "nm-2-4-x16", "nm-1-2-w64-s4"
    }  # fmt: skip
    assert all(case.workload.batch * case.workload.q_len <= 32768 for case in targets)


def test_unknown_suite():
    with pytest.raises(ValueError, match="targets"):
        suite("fast")
