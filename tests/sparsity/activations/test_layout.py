"""Weights by input, in one copy, and back."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import pytest
import torch
from torch import nn

from dynattn.sparsity.activations.layout import input_major


@pytest.mark.parametrize("inference", [False, True])
def test_a_weight_is_stored_by_its_inputs_and_then_as_before(inference):
    layer: Any = nn.Linear(5, 3)
    x = torch.randn(2, 5)
    weight, before, expected = layer.weight, layer.weight.detach().clone(), layer(x)
    undo = ExitStack()
    with torch.inference_mode(inference):
        input_major(layer.weight, undo)
        assert layer.weight.t().is_contiguous()
        assert layer.weight.untyped_storage().nbytes() == before.nbytes
        torch.testing.assert_close(layer(x), expected)
    with torch.no_grad():
        weight[1] = 7.0  # what is changed meanwhile stays changed
        before[1] = 7.0
    with torch.inference_mode(inference):
        undo.close()
    assert layer.weight is weight
    assert weight.is_contiguous()
    assert torch.equal(weight, before)
    layer(x).sum().backward()  # it can be trained
    assert weight.grad is not None


def test_a_weight_of_other_strides_stays_as_it_is():
    layer: Any = nn.Linear(4, 3)
    layer.weight.data = torch.randn(3, 8)[:, ::2]
    strides = layer.weight.stride()
    with ExitStack() as undo:
        input_major(layer.weight, undo)
        assert layer.weight.stride() == strides
