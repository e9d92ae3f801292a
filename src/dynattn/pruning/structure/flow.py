"""Gradient flow: how much of the squared gradient of a loss, by which training makes progress, hangs on each block.

    g = ∇L(θ),    d‖g‖² ≈ 2 (dθ)ᵀ H g,    flow of a block = Σ over its weights of θ · (H g)

Removing a block is dθ = −θ there, so twice its flow is what the squared gradient loses to first order. Blocks of the
least flow go first. Source: the criterion is that of GraSP, arXiv:2002.07376, which scores a weight by −θ · H g and
removes the highest; that whole layers can go by such a criterion is after "When Layers Play the Lottery",
arXiv:2301.10835, and the sum over a block is this library's. One product of the Hessian with a vector serves all
blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from dynattn.nn.parameters import gradients
from dynattn.pruning.structure.elements import Element
from dynattn.pruning.structure.find import Structure, find


def gradient_flow(model: nn.Module, loss: Callable[[], Tensor]) -> dict[Element, float]:
    """The flow of every attention and MLP block.

    Args:
        model: a Transformers model with ``sdpa`` or ``eager`` attention; its gradients are left as they are.
        loss: runs the model, and gives a scalar that can be differentiated twice.

    Returns:
        The flow of each block, in the order of the layers; whole layers are sums of two.

    Raises:
        TypeError: it is not a module.
        ValueError: the model is not of a known form, or the loss does not depend on its blocks.
    """
    blocks = dict(_blocks(find(model)))
    weights = [weight for block in blocks.values() for weight in block]
    # Fused kernels have no second derivative.
    with gradients(weights, True), torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
        first = torch.autograd.grad(loss(), weights, create_graph=True, allow_unused=True)
        squared = [(part * part.detach()).sum() for part in first if part is not None]
        if not squared:
            raise ValueError(
                "gradient_flow: the loss must depend on the model's blocks: it does not; compute it inside of loss"
            )
        products = torch.autograd.grad(torch.stack(squared).sum(), weights, allow_unused=True)
    of = {
        id(weight): 0.0 if product is None else (weight.detach() * product).sum().item()
        for weight, product in zip(weights, products, strict=True)
    }
    return {element: sum(of[id(weight)] for weight in block) for element, block in blocks.items()}


def lottery(flow: dict[Element, float], layers: int) -> frozenset[Element]:
    """The whole layers of the least flow, which are removed at once.

    Args:
        flow: what :func:`gradient_flow` gave.
        layers: how many to remove.

    Returns:
        Both blocks of each of them.

    Raises:
        ValueError: there are not so many layers.
    """
    of: dict[int, float] = {}
    for element, value in flow.items():
        of[element.layer] = of.get(element.layer, 0.0) + value
    if not 0 <= layers < len(of):
        raise ValueError(f"lottery: layers must be at least 0 and leave one of {len(of)}: got {layers}")
    least = sorted(of, key=lambda layer: (of[layer], -layer))[:layers]
    return frozenset(element for element in flow if element.layer in least)


def _blocks(structure: Structure) -> Iterator[tuple[Element, list[nn.Parameter]]]:
    for number, layer in enumerate(structure.layers):
        attention = layer.attention
        modules = (attention.query.module, attention.key.module, attention.value.module, attention.output)
        yield Element("attention", number), _weights(modules)
        if layer.mlp is not None:
            yield Element("mlp", number), _weights((*layer.mlp.into, layer.mlp.output))


def _weights(modules: tuple[nn.Module, ...]) -> list[nn.Parameter]:
    return list({id(weight): weight for module in modules for weight in module.parameters()}.values())
