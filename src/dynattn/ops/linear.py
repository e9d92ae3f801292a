"""Products of linear layers of which some inputs or some outputs are left out, chosen for each token.

    rows       y = (x ∘ keep) Wᵀ + b
    outputs    y = (x Wᵀ + b) ∘ keep

What is left out counts as 0, whatever stands there. Gradients take the choice as a constant.
"""

from __future__ import annotations

from torch import Tensor, nn


def linear_rows(x: Tensor, weight_t: Tensor, bias: Tensor | None = None, *, keep: Tensor) -> Tensor:
    """A linear layer that reads some of its inputs.

    Args:
        x: (tokens, in).
        weight_t: (in, out) contiguous: the weights of an input stand together.
        bias: (out,) or None.
        keep: (tokens, in) bool.

    Returns:
        (tokens, out).
    """
    return nn.functional.linear(x.masked_fill(~keep, 0), weight_t.t(), bias)


def linear_outputs(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, keep: Tensor) -> Tensor:
    """A linear layer that computes some of its outputs; the others are 0.

    Args:
        x: (tokens, in).
        weight: (out, in) contiguous.
        bias: (out,) or None.
        keep: (tokens, out) bool.

    Returns:
        (tokens, out).
    """
    return nn.functional.linear(x, weight, bias).masked_fill(~keep, 0)
