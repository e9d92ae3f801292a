"""Records of what a forward with pruning really did: how many tokens and heads each layer had, for each sample."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True)
class LayerWork:
    """What one layer processed.

    Attributes:
        layer: the number of the layer, from 0.
        tokens: (batch,) int64: the tokens of each sample, without padding.
        length: the length of the tensors that the layer computed on. It is that of the batch's longest sample; before
            anything is pruned, it includes the model's padding.
        heads: (batch,) int64: the heads of each sample.
        notes: more counts of the method, by name, each (batch,).
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
        layers: the work of each layer, from the first to the last.
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
        """(layers, batch) int64: how many tokens each layer saw."""
        return torch.stack([work.tokens for work in self.layers])

    @property
    def heads(self) -> Tensor:
        """(layers, batch) int64: how many heads each layer had."""
        return torch.stack([work.heads for work in self.layers])

    @property
    def skipped(self) -> Tensor:
        """(batch,): the share of the pairs of token and layer that were skipped, for methods whose tokens skip layers.

        Raises:
            ValueError: the method's tokens are gone for good.
        """
        if any("present" not in work.notes for work in self.layers):
            raise ValueError("Forward: skipped is of tokens that skip layers: this method's are gone; see keep_ratio")
        present = torch.stack([work.notes["present"] for work in self.layers]).sum(0)
        return 1 - self.tokens.sum(0).double() / present.clamp(min=1)

    @property
    def keep_ratio(self) -> Tensor:
        """(batch,): the mean number of tokens that a layer saw, over the number that the first layer saw."""
        tokens = self.tokens.double()
        return tokens.mean(0) / tokens[0].clamp(min=1)


class Trace:
    """The forwards made inside a ``with method.apply(model) as trace``.

    Attributes:
        on_forward: called with each :class:`Forward`, for counts over many forwards; None for no call.
    """

    def __init__(self) -> None:
        self.on_forward: Callable[[Forward], None] | None = None
        self._last: Forward | None = None

    @property
    def last(self) -> Forward:
        """What the newest forward did.

        Raises:
            RuntimeError: there was no forward yet.
        """
        if self._last is None:
            raise RuntimeError("Trace: the model must have run inside the context: it has not; call it first")
        return self._last

    def add(self, forward: Forward) -> None:
        """Record a forward."""
        self._last = forward
        if self.on_forward is not None:
            self.on_forward(forward)
