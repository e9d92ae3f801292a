"""Recipes by hand: a small network, its data, and trainings written out without the code that is tested."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


def network(bias: bool = True) -> Any:
    """Two layers, in float64, whose inputs are no multiple of 4."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(10, 8, bias=bias), nn.Tanh(), nn.Linear(8, 6, bias=bias)).double()


def batches(count: int) -> list[tuple[Tensor, Tensor]]:
    """Inputs and what should come out."""
    generator = torch.Generator().manual_seed(1)
    return [
        tuple(torch.randn(5, width, generator=generator, dtype=torch.float64) for width in (10, 6))
        for _ in range(count)
    ]  # type: ignore[misc]


def kept_by_loops(weight: Tensor, n: int, m: int) -> Tensor:
    """The N largest of every M along the inputs."""
    weight, mask = weight.detach(), torch.zeros_like(weight, dtype=torch.bool)
    for row in range(weight.shape[0]):
        for start in range(0, weight.shape[1], m):
            group = range(start, min(start + m, weight.shape[1]))
            for column in sorted(group, key=lambda k: (-abs(float(weight[row, k])), k))[:n]:
                mask[row, column] = True
    return mask


def trained(
    data: list[tuple[Tensor, Tensor]],
    optimizer: Callable[..., torch.optim.Optimizer],
    factors: Callable[[int, Tensor], Tensor],
    before: Callable[[nn.Parameter, Tensor], None] = lambda weight, factor: None,
) -> list[Tensor]:
    """The weights of the network after a step for each batch, its products written out.

    Args:
        data: the batches.
        optimizer: made of the parameters.
        factors: of the step and a weight, what each entry is multiplied by.
        before: changes a weight or its gradient right before the optimizer, by the same factors.
    """
    model = network()
    steps = optimizer(model.parameters())
    layers = (model[0], model[2])
    for step, (x, wanted) in enumerate(data):
        used = [factors(step, layer.weight.detach()) for layer in layers]
        masked = [(layer.weight.detach() * factor).requires_grad_() for layer, factor in zip(layers, used, strict=True)]
        hidden = nn.functional.linear(x, masked[0], layers[0].bias).tanh()
        loss = (nn.functional.linear(hidden, masked[1], layers[1].bias) - wanted).square().mean()
        steps.zero_grad()
        loss.backward()
        for layer, one, factor in zip(layers, masked, used, strict=True):
            assert one.grad is not None
            layer.weight.grad = one.grad.clone()  # straight through, to all entries
            with torch.no_grad():
                before(layer.weight, factor)
        steps.step()
    return [weight.detach() for weight in model.parameters()]


def learn(model: nn.Module, optimizer: torch.optim.Optimizer, data: list[tuple[Tensor, Tensor]]) -> None:
    """The usual loop."""
    for x, wanted in data:
        optimizer.zero_grad()
        (model(x) - wanted).square().mean().backward()
        optimizer.step()
