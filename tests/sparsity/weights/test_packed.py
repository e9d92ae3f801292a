"""Linear layers that read packed N:M weights."""

from __future__ import annotations

from contextlib import ExitStack

import pytest
import torch
from torch import nn

from dynattn.sparsity import InputStatistics, NMWeights
from dynattn.sparsity.weights import packed
from dynattn.sparsity.weights.packed import FEW, pack, read_packed


@pytest.mark.parametrize("score", ["magnitude", "wanda"])
@torch.no_grad()
def test_any_number_of_tokens_gets_the_masked_layers_result_and_the_layer_is_itself_again(score):
    torch.manual_seed(0)
    layer, x = nn.Linear(40, 24), torch.randn(2, FEW + 3, 40)
    before = layer(x)
    norms = torch.rand(40, dtype=torch.float64)
    statistics = InputStatistics(1, torch.zeros_like(norms), norms.square())
    method = NMWeights(2, 4, score=score)
    mask = method.masks({"": layer.weight}, {"": statistics})[""]
    assert not mask.all()
    expected = nn.functional.linear(x, layer.weight * mask, layer.bias)
    with ExitStack() as undo:
        read_packed([(layer, pack(layer, method, statistics))], undo)
        torch.testing.assert_close(layer(x), expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(layer(x[:, :1]), expected[:, :1], rtol=1e-5, atol=1e-5)
        with pytest.raises(ValueError, match="packed: linear layers must have their class's own forward"):
            read_packed([(layer, pack(layer, method, statistics))], undo)
    assert torch.equal(layer(x), before)
    assert "forward" not in vars(layer)


@torch.no_grad()
def test_kernels_are_given_as_many_tokens_as_they_take(monkeypatch):
    calls = []
    monkeypatch.setattr(packed, "linear_nm_weight", lambda x, *_: calls.append(len(x)) or x.new_zeros(len(x), 8))
    layer = nn.Linear(32, 8)
    with ExitStack() as undo:
        read_packed([(layer, pack(layer, NMWeights(1, 2)))], undo)
        assert layer(torch.zeros(1, 2 * FEW + 1, 32)).shape == (1, 2 * FEW + 1, 8)
    assert calls == [FEW, FEW, 1]
