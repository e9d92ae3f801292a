"""DEFT's density loss: teaches the activations of MLPs to be 0, where they are nearly so already.

    loss = task's loss + α · mean over layers of mean( x² / (x² + ε) )

x is what the MLP's output projection reads: in a plain MLP the activation function's output, in a gated one its product
with the other half, which is 0 where one of them is (this project's choice). The fraction is a smooth count of what is
not 0: 1 far from it, x² / ε near it.

Source: "From PEFT to DEFT: Parameter Efficient Finetuning for Reducing Activation Density in Transformers",
arXiv:2402.01911: α = 1, ε = 1e-7 with adapters and 20 with prompts.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn

from dynattn.maths.scores import arithmetic_dtype
from dynattn.pruning.structure.find import mlp_outputs
from dynattn.sparsity.sites import given


@final
@dataclass(frozen=True)
class DensityLoss:
    """A penalty on what is not 0 in the activations of MLPs.

    Args:
        weight: α.
        epsilon: ε: values whose square is well below it count as 0.

    Raises:
        ValueError: a number is not positive and finite.
    """

    weight: float = 1.0
    epsilon: float = 1e-7

    def __post_init__(self) -> None:
        for field in ("weight", "epsilon"):
            value = getattr(self, field)
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"DensityLoss: {field} must be positive and finite: got {value}; leave it out")

    def of(self, x: Tensor) -> Tensor:
        """``mean( x² / (x² + ε) )``, a scalar.

        Args:
            x: activations of any shape.
        """
        squares = x.to(arithmetic_dtype(x.dtype)).square()
        return (squares / (squares + self.epsilon)).mean()

    @contextmanager
    def watch(self, model: nn.Module) -> Iterator[Measured]:
        """While active, forwards whose gradients are recorded are measured.

        Args:
            model: of Transformers, with an MLP of plain linear layers in every layer.

        Yields:
            What is measured; ``loss()`` of it is added to the task's loss after each forward.

        Raises:
            TypeError: it is not a module.
            ValueError: it has no layers of a form that is known, or one without such an MLP.
        """
        measured = Measured(self)
        with ExitStack() as undo:
            for output in mlp_outputs(model, "DensityLoss"):
                undo.callback(output.register_forward_pre_hook(measured.look, with_kwargs=True).remove)
            yield measured


class Measured:
    """What :meth:`DensityLoss.watch` measures.

    Attributes:
        density: the share of activations that were not exactly 0, over the layers of the last ``loss()``; None before.
    """

    def __init__(self, asked: DensityLoss) -> None:
        self.density: float | None = None
        self._asked = asked
        self._terms: list[Tensor] = []
        self._shares: list[Tensor] = []

    def look(self, _: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Measure the activations that a layer's output projection reads."""
        x = given(args, kwargs)
        if torch.is_grad_enabled() and x.requires_grad:
            self._terms.append(self._asked.of(x))
            self._shares.append((x.detach() != 0).double().mean())

    def loss(self) -> Tensor:
        """The penalty of all that was measured since the last time, a scalar: α times the mean over layers.

        Raises:
            RuntimeError: nothing was measured.
        """
        if not self._terms:
            raise RuntimeError(
                "DensityLoss: a forward must have been recorded for gradients: there was none since the last loss(); "
                "call it once after each forward"
            )
        penalty = self._asked.weight * torch.stack(self._terms).mean()
        self.density = float(torch.stack(self._shares).mean())
        self._terms, self._shares = [], []
        return penalty
