"""Window attention in linear time: each block of queries with the slice of keys that its windows reach, and the sinks.

    block I: queries [I·B, (I + 1)·B) and keys [start + I·B, start + I·B + size),
    start = kv_len - q_len - (window - 1),    size = B + 2 · (window - 1), or B + window - 1 where attention is causal

All blocks are one call of dense attention, in which a mask cuts the windows out of the slices. What lies outside of a
slice is neither scored nor read, which leaves (size + sinks) / kv_len of the work of dense attention.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from dynattn.methods import Window

# (12, 2048, 64), window 256, 4 sinks, one thread: 103 ms with 32 queries, 62 with 64, 44 with 128, 45 with 256.
_BLOCK = 128


class _Cut(NamedTuple):
    """Where blocks and slices lie; the sinks stand before each slice."""

    block: int
    blocks: int
    start: int
    size: int
    sinks: int

    @classmethod
    def of(cls, method: Window, q_len: int, kv_len: int, causal: bool) -> _Cut:
        """For a call; one block with all keys where a slice would be longer than those."""
        reach = method.window - 1
        block = max(1, min(_BLOCK, q_len))
        size = block + reach * (1 if causal else 2)
        if size + method.sinks >= kv_len:
            return cls(max(1, q_len), 1, 0, kv_len, 0)
        return cls(block, max(1, -(-q_len // block)), kv_len - q_len - reach, size, method.sinks)

    def padding(self, kv_len: int) -> tuple[int, int]:
        """Keys to add before and after all; fewer than none where slices leave keys out."""
        return -self.start, self.start + (self.blocks - 1) * self.block + self.size - kv_len


def attend(
    dense: Callable[..., Tensor], query: Tensor, key: Tensor, value: Tensor, method: Window, *,
    attn_mask: Tensor | None, causal: bool, scale: float | None,
) -> Tensor:  # fmt: skip
    """Window attention; differentiable where ``dense`` is.

    Args:
        dense: attention of queries, keys and values with ``attn_mask`` and ``scale``, which gives 0 in rows where
            nothing is allowed.
        query, key, value, method, attn_mask, causal, scale: as :func:`dynattn.attention` takes them.

    Returns:
        (batch, heads, q_len, value_dim).
    """
    batch, _, q_len, _ = query.shape
    kv_len = key.shape[2]
    cut = _Cut.of(method, q_len, kv_len, causal)
    mask = _band(cut, method, q_len, kv_len, causal, key.device)
    if attn_mask is not None:
        mask = _joined(mask, _of_blocks(cut, attn_mask, q_len, kv_len))
    mask = mask.expand(batch, *mask.shape[1:]).flatten(0, 1)
    out = dense(_queries(cut, query), _keys(cut, key), _keys(cut, value), attn_mask=mask, scale=scale)
    return out.unflatten(0, (batch, cut.blocks)).transpose(1, 2).flatten(2, 3)[:, :, :q_len]


def _queries(cut: _Cut, query: Tensor) -> Tensor:
    """(batch · blocks, heads, block, head_dim); the last block is filled up."""
    rows = nn.functional.pad(query, (0, 0, 0, cut.blocks * cut.block - query.shape[2]))
    return rows.unflatten(2, (cut.blocks, cut.block)).transpose(1, 2).flatten(0, 1)


def _keys(cut: _Cut, x: Tensor) -> Tensor:
    """What each block attends to, of keys or values: (batch · blocks, kv_heads, sinks + size, dim)."""
    slices = nn.functional.pad(x, (0, 0, *cut.padding(x.shape[2]))).unfold(2, cut.size, cut.block)
    slices = slices.permute(0, 2, 1, 4, 3)
    if cut.sinks:
        slices = torch.cat([x[:, None, :, : cut.sinks].expand(-1, cut.blocks, -1, -1, -1), slices], 3)
    return slices.flatten(0, 1)


def _band(cut: _Cut, method: Window, q_len: int, kv_len: int, causal: bool, device: torch.device) -> Tensor:
    """What window and sinks allow, each pair in one of its two places: (1, blocks, 1, block, sinks + size)."""
    first = torch.arange(cut.blocks, device=device).view(-1, 1, 1) * cut.block
    query = first + torch.arange(cut.block, device=device).view(-1, 1)
    position = query + kv_len - q_len
    sink = torch.arange(cut.sinks, device=device).expand(cut.blocks, 1, -1)
    near = first + cut.start + torch.arange(cut.size, device=device)
    kept = ((position - near).abs() < method.window) | (near < method.sinks)
    kept = kept & (near >= cut.sinks) & (near < kv_len)
    kept = torch.cat([(sink >= 0).expand(-1, cut.block, -1), kept], -1) & (query < q_len)
    if causal:
        kept = kept & (torch.cat([sink, near], -1) <= position)
    return kept[None, :, None]


def _of_blocks(cut: _Cut, attn_mask: Tensor, q_len: int, kv_len: int) -> Tensor:
    """A mask as the blocks see it: (batch or 1, blocks, heads or 1, block or 1, sinks + size)."""
    mask = attn_mask.view((1,) * (4 - attn_mask.dim()) + tuple(attn_mask.shape))
    mask = mask.expand(*mask.shape[:3], kv_len)
    if mask.shape[2] == 1:
        slices = nn.functional.pad(mask, cut.padding(kv_len)).unfold(-1, cut.size, cut.block).movedim(3, -1)
        sinks = mask[..., : cut.sinks, None].expand(-1, -1, -1, -1, cut.blocks)
    else:
        rows = nn.functional.pad(mask, (0, 0, 0, cut.blocks * cut.block - q_len)).unflatten(2, (cut.blocks, cut.block))
        slices = nn.functional.pad(rows, cut.padding(kv_len)).unfold(-1, cut.size, cut.block)
        slices = slices.diagonal(dim1=2, dim2=4)  # of every block of queries its own slice
        sinks = rows[..., : cut.sinks].movedim(2, -1)
    return torch.cat([sinks, slices], 3).movedim(-1, 1)


def _joined(band: Tensor, mask: Tensor) -> Tensor:
    """A mask of what both allow."""
    return band & mask if mask.dtype == torch.bool else torch.where(band, mask, -torch.inf)
