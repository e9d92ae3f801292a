"""The flow of a block is the derivative of the squared gradient along its removal."""

from __future__ import annotations

import pytest
import torch

from dynattn.pruning.structure.elements import Element
from dynattn.pruning.structure.find import find
from dynattn.pruning.structure.flow import gradient_flow, lottery
from tests.pruning.structure.models import inputs, make

STEP = 1e-3


def _squared_gradient(model, loss, weights) -> float:
    model.zero_grad()
    loss().backward()
    return sum(weight.grad.square().sum().item() for weight in weights)


def _modules(layer, kind) -> list:
    """The modules of a block."""
    attention, mlp = layer.attention, layer.mlp
    if kind == "mlp":
        return [*mlp.into, mlp.output]
    return [*{attention.query.module, attention.key.module, attention.value.module, attention.output}]


@pytest.mark.parametrize("kind", ["llama", "bert", "gpt2"])
def test_it_is_half_of_what_the_squared_gradient_loses_to_first_order(kind):
    model, given = make(kind).double(), inputs(kind)
    loss = lambda: model(**given)[0].sin().mean()  # noqa: E731
    flow = gradient_flow(model, loss)
    layers = find(model).layers
    modules = {element: _modules(layers[element.layer], element.kind) for element in flow}
    blocks = [weight for own in modules.values() for module in own for weight in module.parameters()]
    for element, own in list(modules.items())[2:4]:
        found = []
        for factor in (1 + STEP, (1 - STEP) / (1 + STEP)):
            with torch.no_grad():
                for module in own:
                    for weight in module.parameters():
                        weight.mul_(factor)
            found.append(_squared_gradient(model, loss, blocks))
        with torch.no_grad():
            for module in own:
                for weight in module.parameters():
                    weight.div_(1 - STEP)
        # Llama's norms compute in float32, whatever the dtype: hence the size of the step, and the bound.
        assert flow[element] == pytest.approx((found[0] - found[1]) / (2 * STEP) / 2, rel=1e-3)


def test_the_model_is_left_as_it_was():
    model, given = make("llama"), inputs("llama")
    model.requires_grad_(False)
    gradient_flow(model, lambda: model(**given).logits.square().mean())
    assert all(weight.grad is None and not weight.requires_grad for weight in model.parameters())


def test_a_loss_of_something_else_is_refused():
    with pytest.raises(ValueError, match="the loss must depend on the model's blocks"):
        gradient_flow(make("llama"), lambda: torch.ones((), requires_grad=True) * 2)


def test_the_layers_of_the_least_flow_go_whole():
    values = {"attention-0": 1.0, "mlp-0": -3.0, "attention-1": 5.0, "mlp-1": -9.0, "attention-2": 0.0, "mlp-2": 0.5}
    flow = {Element.from_name(name): value for name, value in values.items()}
    assert {element.name for element in lottery(flow, 1)} == {"attention-1", "mlp-1"}
    assert {element.layer for element in lottery(flow, 2)} == {1, 0}
    assert lottery(flow, 0) == frozenset()
    for wrong in (-1, 3):
        with pytest.raises(ValueError, match="lottery: layers must be"):
            lottery(flow, wrong)
