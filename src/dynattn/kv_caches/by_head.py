"""A layer of a cache in which each key head holds tokens of its own."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dynattn.integrations.transformers import Call
from dynattn.kv_caches.layer import Layer
from dynattn.ops.one_query import kernel_runs, ragged_attention


class _Begins(NamedTuple):
    """Where what is held begins.

    Attributes:
        slots: the first slot that is not empty, of each key head of each sample.
        position: (batch, 1, 1, 1) int64, a position before which no head of a sample holds a token.
    """

    slots: tuple[int, ...]
    position: Tensor


class HeadLayer(Layer):
    """Keys and values by key head. All heads have as many slots; where one holds fewer tokens than another, its first
    slots are empty, and :meth:`fit` forbids them.

    One token at a time is attended to by a kernel that reads no empty slot; all else is attention with a mask.

    Attributes:
        positions: (batch, kv_heads, held), ascending; -1 for an empty slot.
        ragged: whether there are empty slots.
        groups: how many query heads share a key head; told by whoever evicts.
    """

    by_head = True

    def __init__(self, room: int) -> None:
        super().__init__(room)
        self.ragged = False
        self.groups = 1
        self._begins: _Begins | None = None  # found out when it is asked for

    def evict(self, keep: Tensor) -> None:
        """Hold only these tokens.

        Args:
            keep: (batch, kv_heads, kept) indices into what is held, ascending.
        """
        held = [buffer[:, :, : self.held] for buffer in self._buffers]
        index = keep[..., None]
        self._hold([view.gather(2, index.expand(-1, -1, -1, view.shape[3])) for view in held])
        self._begins = None

    def evict_ragged(self, kept: Tensor) -> None:
        """Hold only these tokens, of which heads may have different numbers. There are as many slots as the head with
        the most tokens needs.

        Args:
            kept: (batch, kv_heads, held) bool.
        """
        longest = int(kept.sum(-1).amax())
        index = kept.to(torch.uint8).argsort(dim=-1, stable=True)[..., self.held - longest :]  # what is kept comes last
        empty = ~kept.gather(-1, index)
        self.evict(index)
        self.ragged = bool(empty.any())
        self.positions.masked_fill_(empty, -1)  # a view of the buffer

    def fit(self, mask: Tensor | None) -> Tensor | None:
        """The part of a mask that is about the tokens that the last :meth:`update` returned, head by head.

        Args:
            mask: (batch or 1, heads or 1, q_len, seen), or None.

        Returns:
            (batch, heads, q_len, slots returned), or (batch, heads, 1, slots returned) where there was no mask and some
            slots are empty, or the mask as it was.
        """
        shown = self._shown
        if shown is None or (not self.ragged and (mask is None or shown.shape[2] == self.seen)):
            return mask
        index = shown.repeat_interleave(self.groups, 1)  # [batch, heads, slots]
        there = (index >= 0)[:, :, None]
        if mask is None:
            return there
        index = index.clamp(min=0)[:, :, None].expand(-1, -1, mask.shape[2], -1)
        fitted = mask.expand(len(index), index.shape[1], -1, -1).gather(-1, index)
        if not self.ragged:
            return fitted
        if fitted.dtype != torch.bool:
            return fitted.masked_fill(~there, -math.inf)
        return fitted & there

    def attend(self, call: Call) -> Tensor | None:
        if not self.ragged or not call.method.keeps_everything or not self.is_one_query(call):
            return None
        key, value = self._buffers[:2]
        contiguous = key.is_contiguous() and value.is_contiguous()  # not after a crop
        if not (contiguous and kernel_runs(call.query, key, value)):
            return None
        begins = self._begins = self._begins or self._find_begins()
        if not _allows(call.attn_mask, begins.position):
            return None
        scale = call.query.shape[-1] ** -0.5 if call.scale is None else call.scale
        return ragged_attention(call.query, key, value, begins.slots, self.held, scale)

    def crop(self, tokens_to_remove: int, *, keep_room: bool = False) -> None:
        """Remove the latest tokens; see :meth:`Layer.crop`."""
        super().crop(tokens_to_remove, keep_room=keep_room)
        self._begins = None

    def reset(self) -> None:
        """Forget everything."""
        super().reset()
        self.ragged, self._begins = False, None

    def _find_begins(self) -> _Begins:
        slot = (self.positions < 0).sum(-1)
        position = self.positions.gather(-1, slot.unsqueeze(-1)).amin(1)
        return _Begins(tuple(slot.flatten().tolist()), position[:, None, None])

    def _samples(self, change: Callable[[Tensor], Tensor]) -> None:
        super()._samples(change)
        self._begins = None

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_begins": None}


def _allows(mask: Tensor | None, position: Tensor) -> bool:
    """Whether a mask of the whole text allows every token from a position on; each sample has its own. One that is
    added to the scores is taken not to, since it may be anything."""
    if mask is None:
        return True
    if mask.dtype != torch.bool:
        return False
    before = torch.arange(mask.shape[-1], device=mask.device) < position
    return bool((mask | before).all())
