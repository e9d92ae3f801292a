"""Calls of linear layers that are repeated: which have a plan, and that a plan gives the answer of every other call."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
from torch import nn

from dynattn.kernels import cpu
from dynattn.ops import linear_again
from dynattn.ops.linear import linear_rows, linear_threshold
from tests.kernels.cpu.linear.calling import above_by_loops, layer, rows_by_loops

pytestmark = pytest.mark.skipif(not cpu.is_available(), reason=cpu.unavailable_reason() or "")


@pytest.fixture(autouse=True)
def plans(monkeypatch: pytest.MonkeyPatch) -> dict[Any, Any]:
    found: dict[Any, Any] = {}
    monkeypatch.setattr(linear_again, "_plans", found)
    return found


def test_a_plan_serves_all_tensors_of_its_shapes(plans: dict[Any, Any]) -> None:
    for seed in range(3):
        torch.manual_seed(seed)
        for tokens in (2, 40):
            x, weight, bias = (torch.randint(-3, 4, size).float() for size in ((tokens, 20), (9, 20), (9,)))
            limit = torch.rand(1) * 2
            want = rows_by_loops(x, weight, bias, above_by_loops(x, limit)).float()
            for its in (weight.t().contiguous(), nn.Parameter(weight.t().contiguous(), requires_grad=False)):
                assert torch.equal(linear_threshold(x, its, bias, thresholds=limit), want)
    assert len(plans) == 2
    linear_threshold(torch.ones(2, 20), torch.ones(20, 9), thresholds=torch.ones(1))  # without a bias
    linear_threshold(torch.ones(2, 20), torch.ones(20, 9), thresholds=torch.ones(20))
    linear_threshold(torch.ones(2, 20), torch.ones(20, 12)[:, :9], thresholds=torch.ones(1))
    linear_threshold(torch.ones(2, 20).bfloat16(), torch.ones(20, 9).bfloat16(), thresholds=torch.ones(1))
    assert len(plans) == 6


def test_a_call_that_is_not_plain_has_no_key(plans: dict[Any, Any]) -> None:
    its = layer(2, 20, 9, torch.float32)
    weight_t = its.weight.t().contiguous()
    want = rows_by_loops(its.x, its.weight, None, its.keep_inputs).float()

    class Own(torch.Tensor):
        pass

    def key(x: Any = its.x, weight: Any = weight_t, keep: Any = its.keep_inputs) -> Any:
        return linear_again.key_of("linear_rows", None, x, weight, None, keep, None)

    assert key() is not None
    assert key(x=its.x.clone().requires_grad_()) is None
    assert key(weight=nn.Parameter(weight_t)) is None
    with torch.no_grad():
        assert key(weight=nn.Parameter(weight_t)) is not None
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert key() is None
    assert key(x=its.x.as_subclass(Own)) is None
    negative = torch._neg_view(its.x)  # pyright: ignore[reportPrivateImportUsage]
    assert key(x=negative) is None
    assert key(x=its.x.to("meta")) is None
    assert key(x=its.x.to_sparse()) is None
    assert key(x=[1.0]) is None
    assert torch.equal(linear_rows(negative, weight_t, keep=its.keep_inputs), -want)
    turned = its.x.t().contiguous().t()
    for _ in range(2):
        assert torch.equal(linear_rows(turned, weight_t, keep=its.keep_inputs), want)
    assert not plans


def test_as_many_threads_as_there_are_now(monkeypatch: pytest.MonkeyPatch) -> None:
    its = layer(2, 20, 9, torch.float32)
    keys = []
    for threads in (1, 2):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        keys.append(linear_again.key_of("linear_rows", None, its.x, its.weight))
    assert keys[0] != keys[1]


def test_no_tensor_is_kept_and_no_more_plans_than_a_few(plans: dict[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear_again, "_MOST", 3)
    for outputs in range(2, 9):
        its = layer(2, 20, outputs, torch.float32)
        seen = [weakref.ref(x) for x in (its.x, its.keep_inputs)]
        linear_rows(its.x, its.weight.t().contiguous(), keep=its.keep_inputs)
        assert 1 <= len(plans) <= 3
        del its
        assert all(x() is None for x in seen)


def test_for_which_tokens_there_is_a_kernel() -> None:
    counts = (1, 8, 9, 1000)
    assert [n for n in counts if linear_again.has_kernel(n, torch.float32)] == [1, 8, 9, 1000]
    assert [n for n in counts if linear_again.has_kernel(n, torch.bfloat16)] == [1, 8]
    assert [n for n in counts if linear_again.has_kernel(n, torch.float32, inputs_kept=False)] == [1, 8]
    assert not any(linear_again.has_kernel(n, torch.float64) for n in counts)
