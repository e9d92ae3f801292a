"""SR-STE: N:M weights from scratch or by fine-tuning, with a pull on the weights that do not count.

    W̃ = W ∘ E(W)                          E: the N largest |W| of every M, chosen anew at every step
    g_W = g_W̃ + λ (1 - E) ∘ W             the gradient of W̃ for all weights, and a decay of those that are dropped

The decay keeps a weight that was dropped from coming back by chance, so that masks settle. It is added right before
the optimizer's step, once however many backward passes gave the gradient, and is not clipped with it. Adam divides it
by the size of the gradients; ``decoupled`` takes it out of the gradient as AdamW does with its weight decay,
W ← W - rate · λ (1 - E) ∘ W, which is this project's option.

Source: "Learning N:M Fine-grained Structured Sparse Neural Networks From Scratch", arXiv:2102.04010.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn

from dynattn.methods import share
from dynattn.sparsity.training.base import Recipe
from dynattn.sparsity.weights.nm import NMWeights

DECAY = 2e-4
"""The published λ."""

DECAY_NAME = rf"(?:-l(?P<decay>{share.NUMBER}))?"
"""Where a name says λ, as a regular expression."""

_NAME = re.compile(rf"sr-ste-(?P<n>\d+)-(?P<m>\d+){DECAY_NAME}(?P<decoupled>-decoupled)?")


def decay_text(decay: float) -> str:
    """``-l0.001``; nothing for the default."""
    return "" if decay == DECAY else f"-l{share.text(decay)}"


def add_decay(weight: nn.Parameter, kept: Tensor, decay: float) -> None:
    """``g_W += λ (1 - E) ∘ W``, in place.

    Args:
        weight: with its gradient.
        kept: E, in its shape.
        decay: λ.
    """
    if decay and weight.grad is not None:
        weight.grad.add_(weight.masked_fill(kept, 0), alpha=decay)


@dataclass(frozen=True)
class DecayingRecipe(Recipe):
    """The fields of a recipe that pulls weights that do not count to 0.

    Args:
        n: how many weights of each group count.
        m: how many a group has.
        decay: λ.

    Raises:
        TypeError: an argument is of a wrong type.
        ValueError: n is not from 1 to m, or the decay is not from 0 to 1.
    """

    n: int
    m: int
    decay: float = DECAY

    def __post_init__(self) -> None:
        NMWeights(self.n, self.m)
        owner = type(self).__name__
        if not isinstance(self.decay, float):
            raise TypeError(f"{owner}: decay must be a float: got {self.decay!r}; {DECAY} is usual")
        if not 0 <= self.decay <= 1:
            raise ValueError(f"{owner}: decay must be from 0 to 1: got {self.decay}; {DECAY} is usual")


@final
@dataclass(frozen=True)
class SRSTE(DecayingRecipe):
    """Train with N:M weights that are chosen at every step, and pull the others to 0.

    Args:
        n, m, decay: as :class:`DecayingRecipe` has them.
        decoupled: whether the decay goes around the optimizer.

    Raises:
        As :class:`DecayingRecipe`.
    """

    decoupled: bool = False

    @property
    def name(self) -> str:
        """``sr-ste-N-M``, with ``-lDECAY`` and ``-decoupled`` where they are not the defaults."""
        return f"sr-ste-{self.n}-{self.m}{decay_text(self.decay)}{'-decoupled' if self.decoupled else ''}"

    @classmethod
    def from_name(cls, name: str) -> SRSTE | None:
        match = _NAME.fullmatch(name)
        if match is None:
            return None
        return cls(int(match["n"]), int(match["m"]), float(match["decay"] or DECAY), bool(match["decoupled"]))

    @torch.no_grad()
    def adjust(self, weight: nn.Parameter, kept: Tensor, rate: float) -> None:
        if self.decoupled:
            weight.sub_(weight.masked_fill(kept, 0), alpha=rate * self.decay)
        else:
            add_decay(weight, kept, self.decay)
