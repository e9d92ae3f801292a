"""BDWP's three products against their definitions: the gradient of the input is not that of the forward."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from dynattn.sparsity.training import BDWP, SRSTE
from tests.sparsity.training.plain import batches, kept_by_loops, learn, network


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(7, 10), (2, 3, 10)])
@pytest.mark.parametrize(("n", "m"), [(2, 8), (1, 4), (3, 3)])
def test_products_are_their_definitions(bias, shape, n, m):
    torch.manual_seed(0)
    layer = nn.Linear(10, 6, bias=bias).double()
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    upstream = torch.randn(*shape[:-1], 6, dtype=torch.float64)
    with BDWP(n, m).train(layer):
        found = layer(x)
        found.backward(upstream)
    weight = layer.weight.detach()
    forward = weight * kept_by_loops(weight, n, m)
    backward = weight * kept_by_loops(weight.T.contiguous(), n, m).T  # groups along the outputs
    expected = x.detach() @ forward.T
    torch.testing.assert_close(found.detach(), expected + layer.bias.detach() if bias else expected)
    torch.testing.assert_close(x.grad, upstream @ backward)
    rows, given = upstream.reshape(-1, 6), x.detach().reshape(-1, 10)
    torch.testing.assert_close(layer.weight.grad, rows.T @ given)
    if bias:
        torch.testing.assert_close(layer.bias.grad, rows.sum(0))
    if n < m:
        assert not torch.allclose(backward, forward)


def test_a_frozen_weight_and_an_input_without_gradient_cost_nothing():
    layer = nn.Linear(8, 8)
    layer.weight.requires_grad_(False)
    x = torch.randn(3, 8, requires_grad=True)
    with BDWP(2, 8).train(layer):
        layer(x).sum().backward()
        layer(x.detach()).sum().backward()
    assert x.grad is not None
    assert layer.weight.grad is None


def test_dropped_weights_decay_as_sr_ste_has_it():
    data = batches(1)
    found = []
    for recipe in (BDWP(2, 4, 0.5), BDWP(2, 4, 0.0), SRSTE(2, 4, 0.5), SRSTE(2, 4, 0.0)):
        model = network()
        steps = torch.optim.SGD(model.parameters(), lr=0.1)
        with recipe.train(model, steps):
            learn(model, steps, data)
        found.append(model[0].weight.detach())
    torch.testing.assert_close(found[0] - found[1], found[2] - found[3])
    assert not torch.allclose(found[0], found[1])


def test_autocast_multiplies_in_half_precision_and_gives_gradients_in_full():
    layer, x = nn.Linear(8, 8), torch.randn(3, 8, requires_grad=True)
    with BDWP(2, 8).train(layer), torch.autocast("cpu", torch.bfloat16):
        out = layer(x)
        out.float().sum().backward()
    assert out.dtype == torch.bfloat16
    assert (layer.weight.grad.dtype, x.grad.dtype) == (torch.float32, torch.float32)  # type: ignore[union-attr]
    exact = nn.functional.linear(x, layer.weight * kept_by_loops(layer.weight, 2, 8), layer.bias)
    torch.testing.assert_close(out.float(), exact, atol=2e-2, rtol=2e-2)


def test_names_and_refusals():
    for recipe in (BDWP(2, 8), BDWP(1, 4, 0.0)):
        assert BDWP.from_name(recipe.name) == recipe
    assert BDWP(2, 8, 0.0).name == "bdwp-2-8-l0.0"
    with pytest.raises(ValueError, match="BDWP: decay must be from 0 to 1"):
        BDWP(2, 8, -0.1)
