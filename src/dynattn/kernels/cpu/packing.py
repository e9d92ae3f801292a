"""Packs what a call of attention is given: its tensors, pattern and rule, into the structures of ``arguments.py``."""

from __future__ import annotations

import torch
from torch import Tensor

from dynattn.kernels.cpu import loader
from dynattn.kernels.cpu.arguments import BLOCK_FORWARD, DTYPES, NM_FORWARD
from dynattn.kernels.cpu.isas import CODES, TILE_ENGINES, float_parts
from dynattn.kernels.pattern import ANYWHERE, BlockRule, Pattern, Positions
from dynattn.maths import dropout
from dynattn.methods.base import Reach

ADDRESSES = NM_FORWARD.part("query", "logsumexp")
"""Those of a plain call's tensors, with which its arguments begin."""

_NO_STRIDES = (0, 0, 0, 0)
_WORD64 = (1 << 64) - 1


def address(tensor: Tensor | None) -> int:
    """Where a tensor lies; 0 for none."""
    return 0 if tensor is None else tensor.data_ptr()


def addresses(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, out: Tensor, logsumexp: Tensor | None
) -> bytes:
    """The addresses with which the arguments of a plain call begin."""
    return ADDRESSES.pack(
        query.data_ptr(), key.data_ptr(), value.data_ptr(), address(mask), out.data_ptr(), address(logsumexp)
    )


def forward_args(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, out: Tensor, pattern: Pattern, isa: str, *,
    logsumexp: Tensor | None = None, counts: tuple[Tensor | None, Tensor | None, Tensor | None] = (None, None, None),
    thresholds: tuple[Tensor, Tensor] | None = None, seed: int = 0, needs_grad: bool = False,
    blocks: Tensor | None = None, block_size: int = 0, block_queries: int | None = None,
    first: tuple[int, int] = (0, 0), positions: Positions = ANYWHERE,
) -> bytes:  # fmt: skip
    """The structure that all calls of attention begin with.

    Args:
        counts: the kept mass, and how many pairs were kept and allowed.
        query, key, value, mask, out, pattern, isa, logsumexp, thresholds, seed, needs_grad, blocks, block_size,
            block_queries, first, positions: as the functions of :mod:`~dynattn.kernels.cpu.attention_calls` are given
            them.
    """
    if pattern.n == 0:  # a window by itself: dense attention that is cut down to it
        positions = Positions(Reach(pattern.window, pattern.sinks))
        pattern = pattern._replace(n=1, window=0, sinks=0)
    within, within_sinks = positions.within or (0, 0)
    batch, heads, q_len, head_dim = query.shape
    _, kv_heads, kv_len, value_dim = value.shape
    kept_mass, kept, allowed = counts
    threshold, last_tie = thresholds or (None, None)
    first_batch, first_head = first
    return NM_FORWARD.pack(
        query=query.data_ptr(),
        key=key.data_ptr(),
        value=value.data_ptr(),
        mask=address(mask),
        out=out.data_ptr(),
        logsumexp=address(logsumexp),
        kept_mass=address(kept_mass),
        kept=address(kept),
        allowed=address(allowed),
        blocks=address(blocks),
        threshold=address(threshold),
        last_tie=address(last_tie),
        query_strides=query.stride()[:3],
        key_strides=key.stride()[:3],
        value_strides=value.stride()[:3],
        out_strides=out.stride()[:3],
        mask_strides=_NO_STRIDES if mask is None else mask.stride(),
        batch=batch,
        heads=heads,
        kv_heads=kv_heads,
        q_len=q_len,
        kv_len=kv_len,
        head_dim=head_dim,
        value_dim=value_dim,
        parallel=loader.parallel() or 0,
        seed=seed & _WORD64,
        scale=pattern.scale,
        dtype=DTYPES[query.dtype],
        mask_dtype=0 if mask is None else DTYPES[mask.dtype],
        n=pattern.n,
        m=pattern.m,
        window=pattern.window,
        sinks=pattern.sinks,
        within=within,
        within_sinks=within_sinks,
        beyond_blocks=positions.beyond_blocks,
        stride=pattern.stride,
        causal=pattern.causal,
        isa=CODES[isa],
        threads=torch.get_num_threads(),
        needs_grad=needs_grad,
        block_queries=block_size if block_queries is None else block_queries,
        block_size=block_size,
        drop_below=dropout.threshold(pattern.dropout_p),
        keep_factor=1 / (1 - pattern.dropout_p),
        first_batch=first_batch,
        first_head=first_head,
        parts=float_parts() if isa in TILE_ENGINES and query.dtype == torch.float32 else 0,
    )


def block_args(rule: BlockRule, chosen: Tensor | None) -> bytes:
    """What a call that chooses blocks gives besides; without ``chosen`` where the choice is not asked for."""
    return BLOCK_FORWARD.pack(
        chosen=address(chosen),
        floor=rule.floor,
        numerator=rule.numerator,
        denominator=rule.denominator,
        mass=rule.mass,
        alike=rule.alike,
        window=rule.window,
        sinks=rule.sinks,
    )
