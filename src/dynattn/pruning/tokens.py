"""The tokens of a batch that are left: how they are gathered to the front, and put back in their places.

The output of every layer is put back to full length, so that heads and recorders of hidden states find the shape that
they know. The copies move 2 · length · width elements, beside the 12 · length · width² multiply-adds of a layer's
matrices.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Tokens(NamedTuple):
    """Which tokens are left.

    Attributes:
        position: (batch, left) int64: the place of each token in the full sequence, ascending where ``alive``.
            Elsewhere a place that no other entry names.
        alive: (batch, left) bool: False where a sample has fewer tokens than the batch's longest.
        whole: True where the tokens are those of the full sequence, padding included, so that nothing has to be
            gathered.
    """

    position: Tensor
    alive: Tensor
    whole: bool

    @classmethod
    def all(cls, alive: Tensor) -> Tokens:
        """All tokens of a sequence, before anything is pruned.

        Args:
            alive: (batch, length) bool, False at padding.
        """
        position = torch.arange(alive.shape[1], device=alive.device).expand_as(alive)
        return cls(position, alive, True)

    def keep(self, chosen: Tensor) -> Tokens:
        """The tokens of ``chosen``, (batch, left) bool, that are alive, moved to the front in their order."""
        chosen = chosen & self.alive
        count = chosen.sum(1)
        if torch.equal(count, self.alive.sum(1)):
            return self
        length = int(count.max())
        order = torch.sort(chosen.to(torch.int8), dim=1, descending=True, stable=True).indices[:, :length]
        alive = torch.arange(length, device=chosen.device) < count.unsqueeze(1)
        return Tokens(self.position.gather(1, order), alive, False)

    def gather(self, full: Tensor) -> Tensor:
        """(batch, length, width) to (batch, left, width)."""
        if self.whole:
            return full
        return full.gather(1, self.position.unsqueeze(-1).expand(-1, -1, full.shape[-1]))

    def scatter(self, full: Tensor, left: Tensor, before: Tensor) -> Tensor:
        """The full sequence with the tokens that are left in their places.

        Args:
            full: (batch, length, width): the states of all tokens before the layer.
            left: (batch, left, width): after it.
            before: (batch, left, width): as :meth:`gather` gave them.

        Returns:
            (batch, length, width); pruned tokens as in ``full``.
        """
        if self.whole:
            return left
        if not bool(self.alive.all()):  # the last places of a short sample name pruned tokens, whose states must stay
            left = torch.where(self.alive.unsqueeze(-1), left, before)
        return full.scatter(1, self.position.unsqueeze(-1).expand(-1, -1, full.shape[-1]), left)


def padding(mask: Tensor | None, hidden: Tensor) -> Tensor:
    """Which tokens a model's attention mask lets attend.

    Args:
        mask: as a layer gets it: None, or (batch or 1, 1, length or 1, length), bool or additive.
        hidden: (batch, length, width).

    Returns:
        (batch, length) bool, False at padding.

    Raises:
        ValueError: the mask is not one of whole keys, the same for every query.
    """
    batch, length, _ = hidden.shape
    if mask is None:
        return torch.ones(batch, length, dtype=torch.bool, device=hidden.device)
    if mask.dim() != 4 or mask.shape[1] != 1 or mask.shape[3] != length:
        raise ValueError(
            f"pruning: attention_mask must be (batch, 1, length or 1, {length}) inside the model: got "
            f"{tuple(mask.shape)}; use attn_implementation 'sdpa', 'eager' or 'dynattn:...'"
        )
    first = mask[:, 0, 0]
    allowed = first if mask.dtype == torch.bool else first == 0
    forbidden = ~first if mask.dtype == torch.bool else first <= torch.finfo(mask.dtype).min / 2
    if not torch.equal(mask[:, 0], first.unsqueeze(1).expand_as(mask[:, 0])) or not bool((allowed | forbidden).all()):
        raise ValueError(
            "pruning: attention_mask must forbid whole keys and be the same for every query: this one depends on the "
            "query or adds to the scores; pass a padding mask of shape (batch, length)"
        )
    return allowed.expand(batch, length)


def key_mask(alive: Tensor, additive: bool, dtype: torch.dtype) -> Tensor | None:
    """The attention mask for the tokens that are left.

    Args:
        alive: (batch, left) bool.
        additive: 0 and the lowest number, as eager attention takes it, in place of bool.
        dtype: the dtype of an additive mask.

    Returns:
        (batch, 1, 1, left), or None where every token may be attended.
    """
    if bool(alive.all()):
        return None
    mask = alive[:, None, None, :]
    if not additive:
        return mask
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(~mask, torch.finfo(dtype).min)
