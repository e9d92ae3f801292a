"""What a forward did, and the trace that keeps the newest."""

from __future__ import annotations

import pytest
import torch

from dynattn.pruning.work import Forward, LayerWork, Trace


def forward(*tokens: tuple[int, int]) -> Forward:
    layers = tuple(
        LayerWork(number, torch.tensor(counts), max(counts), torch.tensor([4, 4]))
        for number, counts in enumerate(tokens)
    )
    return Forward(layers, torch.tensor([[3, 3, 1], [2, 0, 0]]))


def test_figures_of_a_forward() -> None:
    found = forward((3, 1), (2, 1), (1, 1))
    assert found.tokens.tolist() == [[3, 1], [2, 1], [1, 1]]
    assert found.heads.tolist() == [[4, 4]] * 3
    assert found.survivors.tolist() == [[True, True, False], [False] * 3]
    torch.testing.assert_close(found.keep_ratio, torch.tensor([2 / 3, 1.0], dtype=torch.float64))
    assert forward((0, 2), (0, 1)).keep_ratio.tolist() == [0.0, 0.75]  # a sample without tokens


def test_a_trace_keeps_the_newest_and_tells_each() -> None:
    trace, told = Trace(), []
    with pytest.raises(RuntimeError, match="Trace: the model must have run inside the context"):
        _ = trace.last
    first, second = forward((3, 1)), forward((2, 1))
    trace.add(first)
    trace.on_forward = told.append
    trace.add(second)
    assert trace.last is second
    assert told == [second]
