"""How a method takes part in a forward: what it is shown, what it decides, and the state that it keeps between layers.

After every layer the engine (:mod:`dynattn.pruning.engine`) shows a :class:`Course` what the layer gave, and gathers
the tokens that its :class:`Decision` lets go on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from dynattn.maths.selection import largest


class Start(NamedTuple):
    """What is known when a forward begins.

    Attributes:
        layers: how many layers the model has.
        heads: how many heads a layer has.
        alive: (batch, length) bool, False at padding.
    """

    layers: int
    heads: int
    alive: Tensor


@dataclass(frozen=True)
class Attended:
    """The attention of one layer, which is about to be computed on the tokens and heads that are left.

    Attributes:
        layer: the number of the layer, from 0.
        query: (batch, heads left, tokens left, head_dim).
        key: likewise.
        value: likewise.
        scale: factor of the scores.
        alive: (batch, tokens left) bool; False where a sample has fewer tokens than the longest. None for all True.
        heads: (batch, heads left) int64: which of the model's heads these are; None for all of them.
        dense: whether the model's own attention is plain softmax attention, without dropout.
        run: the model's own attention: ``run()`` returns (batch, tokens left, heads left, head_dim).
    """

    layer: int
    query: Tensor
    key: Tensor
    value: Tensor
    scale: float
    alive: Tensor | None
    heads: Tensor | None
    dense: bool
    run: Callable[[], Tensor]


class Seen(NamedTuple):
    """The output of a layer, by which a method decides which tokens and heads go on.

    Attributes:
        layer: the number of the layer, from 0.
        hidden: (batch, tokens left, width).
        alive: (batch, tokens left) bool; False where a sample has fewer tokens than the longest.
        leading: (batch, tokens left) bool: True for class token and registers, which go on whatever is decided.
        position: (batch, tokens left) int64: where each token stood in the full sequence.
    """

    layer: int
    hidden: Tensor
    alive: Tensor
    leading: Tensor
    position: Tensor


class Decision(NamedTuple):
    """Which tokens and heads go on to the next layer.

    Attributes:
        tokens: (batch, tokens left) bool; None for all. Leading tokens go on whatever it says, and padding never does.
        heads: (batch, heads left) bool, with the same number of True for each sample; None for all.
        gate: (batch, tokens left) factor of the layer's output, for training with soft masks; None for 1.
    """

    tokens: Tensor | None = None
    heads: Tensor | None = None
    gate: Tensor | None = None


class Course:
    """A method's state over one forward. Subclasses override what they need; this one keeps everything."""

    def attend(self, attended: Attended) -> Tensor:
        """Compute the attention of a layer. A method may look at it, or change it.

        Args:
            attended: queries, keys and values.

        Returns:
            (batch, tokens left, heads left, head_dim).
        """
        return attended.run()

    def after(self, seen: Seen) -> Decision:
        """Decide which tokens and heads go on. Called after every layer. After the last, only the gate has an effect.

        Args:
            seen: what the layer gave.
        """
        return Decision()

    def finish(self, full: Tensor) -> Tensor:
        """Change the states that the last layer gives to the rest of the model. Called after the last layer.

        Args:
            full: (batch, length, width): every token in its place; a pruned token has the state it had when it was
                pruned.
        """
        return full

    def notes(self) -> dict[str, Tensor]:
        """More counts about the layer just computed, each (batch,), for its
        :class:`~dynattn.pruning.work.LayerWork`."""
        return {}


def top(importance: Tensor, seen: Seen, count: Tensor) -> Tensor:
    """The ``count`` most important tokens of each sample, leading ones first; ties go to the lower position.

    Args:
        importance: (batch, tokens left).
        seen: what the layer gave.
        count: (batch,) int64, how many to take; more than there are takes all.

    Returns:
        (batch, tokens left) bool.
    """
    return highest(importance.masked_fill(seen.leading, torch.inf), seen.alive, count)


def highest(values: Tensor, allowed: Tensor, count: Tensor) -> Tensor:
    """The ``count`` highest entries of each row; ties go to the lower index.

    Args:
        values: (..., n).
        allowed: broadcasts to (..., n), bool: others are never taken.
        count: broadcasts to (...,), int64, how many to take; more than are allowed takes all of those.

    Returns:
        (..., n) bool.
    """
    return largest(values.masked_fill(~allowed, -torch.inf), count.expand(values.shape[:-1])) & allowed
