"""The heads of a layer that are left: the projections are cut to them, and the outputs of other heads are 0.

The projections are computed for every head that some sample of the batch still has; attention runs on each sample's
own heads alone. With a batch of one nothing is computed for a pruned head.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from dynattn.pruning.layout import LayerParts
from dynattn.pruning.replaced import ReplacedForward, replace


class Heads(NamedTuple):
    """Which heads are left.

    Attributes:
        left: (batch, heads left) int64, ascending: the numbers of the heads that a sample still has.
        union: (some,) int64, ascending: the numbers of the heads that any sample still has.
        place: (batch, heads left) int64: the place of each head of ``left`` in ``union``.
    """

    left: Tensor
    union: Tensor
    place: Tensor

    @classmethod
    def keep(cls, before: Heads | None, chosen: Tensor) -> Heads:
        """The heads that go on.

        Args:
            before: the heads left so far; None for all.
            chosen: (batch, heads left) bool, with the same number of True, at least one, for each sample.

        Raises:
            ValueError: samples keep different numbers of heads, or none.
        """
        count = chosen.sum(1)
        if bool((count != count[0]).any()) or int(count[0]) == 0:
            raise ValueError(
                f"pruning: every sample must keep as many heads, and at least one: got {count.tolist()}; keep the top k"
            )
        kept = torch.sort(chosen.to(torch.int8), dim=1, descending=True, stable=True).indices[:, : int(count[0])]
        left = kept if before is None else before.left.gather(1, kept)
        union = left.unique()
        return cls(left, union, torch.searchsorted(union, left.contiguous()))

    def select(self, x: Tensor) -> Tensor:
        """(batch, heads of the union, tokens, head_dim) to (batch, heads left, tokens, head_dim)."""
        if self.place.shape[1] == len(self.union):
            return x
        return x.gather(1, self.place[:, :, None, None].expand(-1, -1, *x.shape[2:]))

    def spread(self, out: Tensor) -> Tensor:
        """(batch, tokens, heads left, head_dim) to (batch, tokens, heads of the union, head_dim); others are 0."""
        if self.place.shape[1] == len(self.union):
            return out
        full = out.new_zeros(*out.shape[:2], len(self.union), out.shape[3])
        return full.scatter(2, self.place[:, None, :, None].expand(-1, out.shape[1], -1, out.shape[3]), out)

    @staticmethod
    def cut(parts: LayerParts, heads: int, current: Callable[[], Heads | None], undo: ExitStack) -> None:
        """Have the projections of a layer compute only the heads of the union, until ``undo`` is closed.

        Args:
            parts: the layer; its attention must shape its heads by what its projections return.
            heads: how many heads the model has.
            current: gives the heads that are left.
            undo: takes the change back when it is closed.

        Raises:
            ValueError: a projection is not a plain linear layer.
        """
        for name, axis in (("query", 0), ("key", 0), ("value", 0), ("output", 1)):
            linear = getattr(parts, name)
            if type(linear) is not nn.Linear or "forward" in vars(linear):
                raise ValueError(
                    f"pruning: to prune heads, the {name} projection must be a plain torch.nn.Linear: it is a "
                    f"{type(linear).__name__}; merge adapters or load the model unquantised, or prune tokens alone"
                )
            replace(
                linear,
                "forward",
                ReplacedForward(linear.forward, partial(_projected, linear, heads, axis, current)),
                undo,
            )


def _projected(
    linear: nn.Linear, heads: int, axis: int, current: Callable[[], Heads | None], forward: Callable[[Tensor], Tensor],
    input: Tensor,
) -> Tensor:  # fmt: skip
    """Apply a linear layer with only those rows (axis 0) or columns (axis 1) that belong to heads of the union."""
    kept = current()
    if kept is None or len(kept.union) == heads:
        return forward(input)
    head_dim = linear.weight.shape[axis] // heads
    index = (kept.union[:, None] * head_dim + torch.arange(head_dim, device=kept.union.device)).flatten()
    bias = linear.bias if axis == 1 or linear.bias is None else linear.bias[index]
    return nn.functional.linear(input, linear.weight.index_select(axis, index), bias)
