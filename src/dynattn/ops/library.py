"""The ``dynattn`` operators of PyTorch: where they are defined, and what all of them have."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

library = torch.library.Library("dynattn", "DEF")

INPUTS = "Tensor query, Tensor key, Tensor value, Tensor? attn_mask, Tensor? seed"
"""What every operator's schema begins with."""

CALL = "str method, bool causal, float scale, float dropout_p"
"""What follows in those of methods by name."""


def complete(
    name: str,
    fake: Callable[..., Any],
    backward_fake: Callable[..., Any],
    gradients: Callable[..., Any],
    setup_context: Callable[..., Any],
) -> None:
    """Shapes and derivatives of an operator and of its backward, ``<name>_backward``, which has no derivative.

    Args:
        name: of the operator, which is defined in :data:`library` as its backward is.
        fake: its outputs without their values.
        backward_fake: likewise of the backward.
        gradients: of all its arguments, from what ``setup_context`` kept.
        setup_context: keeps what the gradient needs.
    """
    forward, backward = f"dynattn::{name}", f"dynattn::{name}_backward"
    torch.library.register_fake(forward, fake, lib=library)
    torch.library.register_fake(backward, backward_fake, lib=library)
    torch.library.register_autograd(forward, gradients, setup_context=setup_context, lib=library)
    torch.library.register_autograd(backward, refuse_second_derivatives, lib=library)


def refuse_second_derivatives(ctx: Any, *_: Any) -> None:
    """In place of a gradient of the gradient: an error that says so."""
    raise NotImplementedError(
        "attention: second derivatives are not offered; call backward() without create_graph, "
        "or use torch.nn.functional.scaled_dot_product_attention for this part of the model"
    )
