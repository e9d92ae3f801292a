"""DEFT's penalty by its definition, at the place it is meant for."""

from __future__ import annotations

from typing import Any

import pytest
import torch

pytest.importorskip("transformers")

from dynattn.pruning.structure.find import find
from dynattn.sparsity.training import DensityLoss
from tests.pruning.structure.models import LAYERS, inputs, make


def test_it_is_a_smooth_count():
    x = torch.tensor([[0.0, 1e-6, 1.0], [-2.0, 0.0, 3e-4]], dtype=torch.float64, requires_grad=True)
    asked = DensityLoss(epsilon=1e-7)
    expected = sum(v * v / (v * v + 1e-7) for v in x.detach().flatten().tolist()) / 6
    assert asked.of(x).item() == pytest.approx(expected)
    assert torch.autograd.gradcheck(DensityLoss(epsilon=0.5).of, (x,))


@pytest.mark.parametrize("kind", ["llama", "opt"])
def test_it_looks_at_what_output_projections_read(kind):
    model, given = make(kind).train(), inputs(kind)
    model.config.hidden_dropout_prob = 0.0
    asked, seen = DensityLoss(0.5, 0.1), []
    layers: Any = find(model).layers
    for layer in layers:
        layer.mlp.output.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach()))
    with asked.watch(model) as measured:
        model(**given)
        found = measured.loss()
        assert len(seen) == LAYERS
        expected = sum(float((x.square() / (x.square() + 0.1)).mean()) for x in seen) / LAYERS
        assert found.item() == pytest.approx(0.5 * expected, rel=1e-5)
        zeros = sum(float((x == 0).double().mean()) for x in seen) / LAYERS
        assert measured.density == pytest.approx(1 - zeros)
        if kind == "opt":
            assert measured.density is not None
            assert 0.1 < measured.density < 0.9  # ReLU
        found.backward()
        assert layers[0].mlp.into[0].weight.grad.any()
        with torch.no_grad():
            model(**given)
        with pytest.raises(RuntimeError, match="a forward must have been recorded"):
            measured.loss()
        model(**given)
        model(**given)  # of two forwards, the mean
        assert measured.loss().item() == pytest.approx(0.5 * expected, rel=0.2)


def test_training_with_it_brings_activations_to_nothing():
    model, given = make("opt"), inputs("opt")
    layers: Any = find(model).layers
    optimizer, shares = torch.optim.Adam(layers[0].mlp.into[0].parameters(), lr=0.04), list[Any]()
    with DensityLoss(epsilon=1e-2).watch(model) as measured:
        for _ in range(10):
            optimizer.zero_grad()
            model(**given)
            measured.loss().backward()
            optimizer.step()
            shares.append(measured.density)
    assert shares[-1] < shares[0] - 0.05


def test_refusals():
    with pytest.raises(ValueError, match="DensityLoss: weight must be positive"):
        DensityLoss(0.0)
    with pytest.raises(ValueError, match="DensityLoss: epsilon must be positive"):
        DensityLoss(epsilon=float("nan"))
    with pytest.raises(TypeError, match="model must be a Transformers model"), DensityLoss().watch("llama"):  # type: ignore[arg-type]
        pass
