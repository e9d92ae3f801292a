"""BDWP: N:M weights in the forward and in the gradient of the input, by a mask of its own for each.

    Y  = X W̃_Fᵀ + b        W̃_F: the N largest |W| of every M along the inputs
    dX = dY W̃_B            W̃_B: the N largest |W| of every M along the outputs, of the same W
    dW = dYᵀ X             dense, for all weights; and λ (1 - E_F) ∘ W, as SR-STE has it

Two of the three products are N:M, which is what hardware for them would gain. Here zeros are multiplied like other
numbers: the recipe shows what the training would come to, and not its speed. ``dX`` is not the gradient of the forward.

Source: "Efficient N:M Sparse DNN Training Using Algorithm, Architecture, and Dataflow Co-Design", arXiv:2309.13015,
which takes 2:8. Its abstract does not say whether dropped weights decay; with a decay of 0.0 they do not.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from dynattn.sparsity.training.sr_ste import DECAY, DECAY_NAME, DecayingRecipe, add_decay, decay_text
from dynattn.sparsity.weights.nm import best

_NAME = re.compile(rf"bdwp-(?P<n>\d+)-(?P<m>\d+){DECAY_NAME}")


@final
@dataclass(frozen=True)
class BDWP(DecayingRecipe):
    """Train with N:M weights forward, and with others backward.

    Args:
        n, m, decay: as :class:`~dynattn.sparsity.training.sr_ste.DecayingRecipe` has them.

    Raises:
        As there.
    """

    @property
    def name(self) -> str:
        """``bdwp-N-M``, with ``-lDECAY`` where it is not the default."""
        return f"bdwp-{self.n}-{self.m}{decay_text(self.decay)}"

    @classmethod
    def from_name(cls, name: str) -> BDWP | None:
        match = _NAME.fullmatch(name)
        return cls(int(match["n"]), int(match["m"]), float(match["decay"] or DECAY)) if match else None

    def multiply(self, x: Tensor, weight: Tensor, bias: Tensor | None, kept: Tensor, rest: float) -> Tensor:
        if not torch.is_grad_enabled():  # nobody goes back
            return super().multiply(x, weight, bias, kept, rest)
        back = best(weight.detach().abs().T.contiguous(), self.n, self.m).T
        kind = x.device.type
        if torch.is_autocast_enabled(kind):
            dtype = torch.get_autocast_dtype(kind)
            x, weight, bias = (None if one is None else one.to(dtype) for one in (x, weight, bias))  # type: ignore[assignment]
        with torch.autocast(kind, enabled=False):
            return _TwoMasks.apply(x, weight, bias, kept, back)  # type: ignore[no-any-return]

    @torch.no_grad()
    def adjust(self, weight: nn.Parameter, kept: Tensor, rate: float) -> None:
        add_decay(weight, kept, self.decay)


class _TwoMasks(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, kept: Tensor, back: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight, back)
        return nn.functional.linear(x, weight.masked_fill(~kept, 0), bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, weight, back = ctx.saved_tensors
        wants_x, wants_weight, wants_bias, *_ = ctx.needs_input_grad
        rows = gradient.flatten(0, -2)  # [tokens, out]
        of_x = gradient @ weight.masked_fill(~back, 0) if wants_x else None
        of_weight = rows.T @ x.flatten(0, -2) if wants_weight else None
        return of_x, of_weight, rows.sum(0) if wants_bias else None, None, None
