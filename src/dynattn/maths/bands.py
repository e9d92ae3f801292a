"""Windows in linear time: each block of queries meets the slice of keys that its windows reach, and the sinks.

    block I: queries [I·B, (I + 1)·B) and keys [start + I·B, start + I·B + size),
    start = kv_len - q_len - (window - 1),    size = B + 2 · (window - 1), or B + window - 1 where attention is causal

All blocks are one batch of dense attention, in which a mask cuts the windows out of the slices. What lies outside of a
slice is neither scored nor read, which leaves (size + sinks) / kv_len of the work of dense attention.

A few queries, as in decoding, are one block, whose slice and sinks are read where they lie: :class:`Spans`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

# (12, 2048, 64), window 256, 4 sinks, one thread: 103 ms with 32 queries, 62 with 64, 44 with 128, 45 with 256.
_BLOCK = 128


class Bands(NamedTuple):
    """Where blocks of queries and their slices of keys lie in a call. The sinks stand before each slice.

    Attributes:
        q_len, kv_len: the lengths of the call.
        window, sinks: keys less than ``window`` positions from the query are kept, and the first ``sinks``.
        causal: keys after the query are forbidden, aligned bottom-right.
        block, blocks: how many queries a block has, and how many blocks there are.
        start: the first key of the first slice; it may be negative.
        size: how many keys a slice has.
        before: how many sinks stand before each slice; 0 where a slice holds all keys.
    """

    q_len: int
    kv_len: int
    window: int
    sinks: int
    causal: bool
    block: int
    blocks: int
    start: int
    size: int
    before: int

    @classmethod
    def of(cls, window: int, sinks: int, q_len: int, kv_len: int, causal: bool) -> Bands:
        """The bands of a call. They are one block with all keys where a slice would be longer than the keys."""
        reach = window - 1
        block = max(1, min(_BLOCK, q_len))
        size = block + reach * (1 if causal else 2)
        call = (q_len, kv_len, window, sinks, causal)
        if size + sinks >= kv_len:
            return cls(*call, max(1, q_len), 1, 0, kv_len, 0)
        return cls(*call, block, max(1, -(-q_len // block)), kv_len - q_len - reach, size, sinks)

    def queries(self, x: Tensor, fill: float = 0.0) -> Tensor:
        """(batch, heads, q_len, …) as (batch · blocks, heads, block, …); the last block is filled up."""
        missing = self.blocks * self.block - self.q_len
        rows = pad(x, (0, 0) * (x.dim() - 3) + (0, missing), value=fill) if missing else x
        return rows.unflatten(2, (self.blocks, self.block)).transpose(1, 2).flatten(0, 1)

    def keys(self, x: Tensor) -> Tensor:
        """The keys or values that each block attends to: (batch · blocks, kv_heads, before + size, dim)."""
        slices = pad(x, (0, 0, *self._padding)).unfold(2, self.size, self.block)
        slices = slices.permute(0, 2, 1, 4, 3)
        if self.before:
            slices = torch.cat([x[:, None, :, : self.before].expand(-1, self.blocks, -1, -1, -1), slices], 3)
        return slices.flatten(0, 1)

    def mask(self, batch: int, attn_mask: Tensor | None, device: torch.device) -> Tensor:
        """What windows, sinks, causality and ``attn_mask`` allow: (batch · blocks, heads or 1, block, before + size).

        Args:
            batch: the batch size of the call.
            attn_mask: as :func:`dynattn.attention` takes it.
            device: the device of the result.

        Returns:
            bool (True: allowed), or added to the scores where ``attn_mask`` is.
        """
        mask = self._kept(device)
        if attn_mask is not None:
            mask = joined(mask, self._in_blocks(attn_mask))
        return mask.expand(batch, *mask.shape[1:]).flatten(0, 1)

    def joined(self, x: Tensor) -> Tensor:
        """The inverse of :meth:`queries`, without what was filled up: (batch, heads, q_len, …), contiguous."""
        rows = x.unflatten(0, (x.shape[0] // self.blocks, self.blocks)).transpose(1, 2).flatten(2, 3)
        return rows[:, :, : self.q_len].contiguous()

    @property
    def _padding(self) -> tuple[int, int]:
        """How many keys to add before the first and after the last; negative where the slices leave keys out."""
        return -self.start, self.start + (self.blocks - 1) * self.block + self.size - self.kv_len

    def _kept(self, device: torch.device) -> Tensor:
        """What window and sinks allow: (1, blocks, 1, block, before + size). A sink that also lies in the slice counts
        once."""
        first = torch.arange(self.blocks, device=device).view(-1, 1, 1) * self.block
        query = first + torch.arange(self.block, device=device).view(-1, 1)
        position = query + self.kv_len - self.q_len
        sink = torch.arange(self.before, device=device).expand(self.blocks, 1, -1)
        near = first + self.start + torch.arange(self.size, device=device)
        kept = ((position - near).abs() < self.window) | (near < self.sinks)
        kept = kept & (near >= self.before) & (near < self.kv_len)
        kept = torch.cat([(sink >= 0).expand(-1, self.block, -1), kept], -1) & (query < self.q_len)
        if self.causal:
            kept = kept & (torch.cat([sink, near], -1) <= position)
        return kept[None, :, None]

    def _in_blocks(self, attn_mask: Tensor) -> Tensor:
        """A mask as the blocks see it: (batch or 1, blocks, heads or 1, block or 1, before + size)."""
        mask = attn_mask.view((1,) * (4 - attn_mask.dim()) + tuple(attn_mask.shape))
        mask = mask.expand(*mask.shape[:3], self.kv_len)
        if mask.shape[2] == 1:
            slices = pad(mask, self._padding).unfold(-1, self.size, self.block).movedim(3, -1)
            sinks = mask[..., : self.before, None].expand(-1, -1, -1, -1, self.blocks)
        else:
            rows = pad(mask, (0, 0, 0, self.blocks * self.block - self.q_len))
            rows = rows.unflatten(2, (self.blocks, self.block))
            slices = pad(rows, self._padding).unfold(-1, self.size, self.block)
            slices = slices.diagonal(dim1=2, dim2=4)  # every block of queries takes its own slice
            sinks = rows[..., : self.before].movedim(2, -1)
        return torch.cat([sinks, slices], 3).movedim(-1, 1)


class Spans(NamedTuple):
    """The keys that a few queries meet, which are not more than the keys, as one run or two.

    Attributes:
        near: the first key that a window reaches, and the key behind the last: all keys where the sinks join them.
        sinks: the same of the sinks that lie apart; None where none do.
    """

    near: slice
    sinks: slice | None

    @classmethod
    def of(cls, window: int, sinks: int, q_len: int, kv_len: int) -> Spans:
        """The runs of a call."""
        first = max(0, kv_len - q_len - (window - 1))
        if first <= sinks:
            return cls(slice(0, kv_len), None)
        return cls(slice(first, kv_len), slice(0, sinks) if sinks else None)


def joined(band: Tensor, mask: Tensor) -> Tensor:
    """A mask that allows what both allow.

    Args:
        band: bool.
        mask: bool, or added to the scores.
    """
    return band & mask if mask.dtype == torch.bool else torch.where(band, mask, -torch.inf)
