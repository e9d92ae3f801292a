"""What a forward with pruning really did: tokens and heads by layer and sample."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True)
class LayerWork:
    """What one layer processed.

    Attributes:
        layer: from 0.
        tokens: (batch,) int64: tokens of each sample, padding not counted.
        length: of the tensors that the layer computed on: the batch's longest sample; before anything is pruned, with
            the model's padding.
        heads: (batch,) int64: heads of each sample.
        notes: what the method has to say besides, by name, (batch,) each.
    """

    layer: int
    tokens: Tensor
    length: int
    heads: Tensor
    notes: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Forward:
    """What one forward of a model did.

    Attributes:
        layers: from the first to the last.
        depth: (batch, length) int64: how many layers each token went through; 0 at padding.
    """

    layers: tuple[LayerWork, ...]
    depth: Tensor

    @property
    def survivors(self) -> Tensor:
        """(batch, length) bool: the tokens that went through every layer."""
        return self.depth == len(self.layers)

    @property
    def tokens(self) -> Tensor:
        """(layers, batch) int64: tokens that each layer saw."""
        return torch.stack([work.tokens for work in self.layers])

    @property
    def heads(self) -> Tensor:
        """(layers, batch) int64: heads that each layer had."""
        return torch.stack([work.heads for work in self.layers])

    @property
    def keep_ratio(self) -> Tensor:
        """(batch,): tokens seen, mean over the layers, over the first layer's."""
        tokens = self.tokens.double()
        return tokens.mean(0) / tokens[0].clamp(min=1)


class Trace:
    """The forwards made inside a ``with method.apply(model) as trace``.

    Attributes:
        on_forward: called with each :class:`Forward`, for accounts over many; None for nobody.
    """

    def __init__(self) -> None:
        self.on_forward: Callable[[Forward], None] | None = None
        self._last: Forward | None = None

    @property
    def last(self) -> Forward:
        """What the newest forward did.

        Raises:
            RuntimeError: there was none yet.
        """
        if self._last is None:
            raise RuntimeError("Trace: the model must have run inside the context: it has not; call it first")
        return self._last

    def add(self, forward: Forward) -> None:
        """Record a forward."""
        self._last = forward
        if self.on_forward is not None:
            self.on_forward(forward)
