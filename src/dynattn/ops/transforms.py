"""N:M attention under ``torch.func``: ``grad``, ``vmap`` and their combinations.

``torch.library`` gives an operator a gradient for eager mode and the compiler, but not for these transforms; an
``autograd.Function`` with ``setup_context`` and ``vmap`` serves them, around the same two operators.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dynattn.ops import batching, nm
from dynattn.ops.library import refuse_forward_mode, refuse_second_derivatives


def active() -> bool:
    """Whether a transform of ``torch.func`` is at work."""
    return torch._C._are_functorch_transforms_active()


class _Gradient(torch.autograd.Function):
    """``nm_attention_backward`` for transforms; the arguments are the operator's."""

    @staticmethod
    def forward(*arguments: Any) -> tuple[Tensor, ...]:
        return torch.ops.dynattn.nm_attention_backward(*arguments)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
        pass

    backward = staticmethod(refuse_second_derivatives)

    @staticmethod
    def vmap(info: Any, in_dims: tuple, *arguments: Any) -> tuple[tuple[Tensor, ...], tuple[int | None, ...]]:
        return batching.rule(nm.BACKWARD, info, in_dims, *arguments, call=_Gradient.apply)


class NMAttention(torch.autograd.Function):
    """``nm_attention`` for transforms; the arguments are the operator's."""

    @staticmethod
    def forward(*arguments: Any) -> tuple[Tensor, ...]:
        return torch.ops.dynattn.nm_attention(*arguments)

    setup_context = staticmethod(nm.DERIVATIVE.setup_context)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple:
        return nm.DERIVATIVE.gradients(ctx, *gradients, call=_Gradient.apply)

    jvp = staticmethod(refuse_forward_mode)

    @staticmethod
    def vmap(info: Any, in_dims: tuple, *arguments: Any) -> tuple[tuple[Tensor, ...], tuple[int | None, ...]]:
        return batching.rule(nm.FORWARD, info, in_dims, *arguments, call=NMAttention.apply)
