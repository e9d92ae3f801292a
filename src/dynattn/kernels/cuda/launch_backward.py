"""Turns a call of the backward into four launches: sums of rows, the terms of each row, the gradients, the sum of dQ.

:func:`prepare_backward` reads shapes, strides and addresses, and takes the scratch that the kernels share, so it works
on tensors of any device, and what it gives can be run by the emulator. :func:`nm_backward` prepares and launches on
torch's current stream.
"""

from __future__ import annotations

import ctypes
from typing import NamedTuple

import torch
from torch import Tensor

from dynattn.kernels.cuda import driver, launch
from dynattn.kernels.cuda.driver import Device, TensorMap
from dynattn.kernels.cuda.launch import ForwardParams, Launch
from dynattn.kernels.cuda.variants import HEAD_DIMS
from dynattn.kernels.cuda.variants_backward import (
    KEY_TILE,
    AnyBackwardVariant,
    BackwardVariant,
    QueryVariant,
    RowTermsVariant,
    WgmmaBackwardVariant,
    row_tiles,
)
from dynattn.kernels.pattern import Pattern

_BLOCKS_A_MULTIPROCESSOR = 2  # so many fit on a multiprocessor, and so many blocks are wanted for each
_SPLITS_AT_MOST = 16  # partial sums of the query's gradient; each takes 4 bytes for every element
_ROW_BLOCK = 16  # the queries of an accumulator
_ROW_TERMS = 4  # floats of a row's terms, with a gap
# The time to clear and to add up the sums of one head on a whole device, in units of one tile of keys on one
# multiprocessor. Predicted: 1 KB a query (½ KB at 64 columns) at 2 KB a cycle, and a tile takes about 50 cycles a
# query.
_SUMS_COST = 0.01

_Strides3 = ctypes.c_longlong * 3


class BackwardParams(ctypes.Structure):
    """``dynattn::BackwardParams`` of backward_params.cuh, field by field."""

    _fields_ = (
        ("forward", ForwardParams),
        *((name, ctypes.c_void_p) for name in ("grad_out", "grad_logsumexp", "row_terms", "query_sums")),
        *((name, ctypes.c_void_p) for name in ("d_query", "d_key", "d_value", "d_mask")),
        *((name, _Strides3) for name in ("grad_out_strides", "d_query_strides", "d_key_strides", "d_value_strides")),
        ("splits", ctypes.c_int),
        ("sum_columns", ctypes.c_int),
        ("query_scale", ctypes.c_float),
    )


class BackwardLaunch(NamedTuple):
    """What a launch needs, as plain data; like :class:`dynattn.kernels.cuda.launch.Launch`.

    Attributes:
        variant: the kernel.
        blocks: how many blocks the one-dimensional grid has; 0 where there is nothing to do.
        params: the first argument of the kernel, the same for these three.
        tensors: the tensors that ``params`` points into, which must live until the kernel is on the stream.
        tensor_maps: further arguments of the ``wgmma`` kernel: two halves of the keys, keys, two halves of the values,
            queries, their outputs' gradients.
    """

    variant: AnyBackwardVariant
    blocks: int
    params: BackwardParams
    tensors: tuple[Tensor | None, ...]
    tensor_maps: tuple[TensorMap, ...] = ()


class Launches(NamedTuple):
    """The launches of a backward, in order.

    Attributes:
        sums: the forward's kernel once more, for rows whose logsumexp does not tell enough (``row_sums.cuh``).
        terms: what makes weights of each row's scores, and gradients of them.
        main: the gradients of keys, values and mask, and partial sums of the query's.
        query: the query's.
    """

    sums: Launch
    terms: BackwardLaunch
    main: BackwardLaunch
    query: BackwardLaunch


def nm_backward(
    grad_out: Tensor,
    grad_logsumexp: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    out: Tensor,
    logsumexp: Tensor,
    d_query: Tensor,
    d_key: Tensor,
    d_value: Tensor,
    d_mask: Tensor | None,
    pattern: Pattern,
    seed: Tensor | None = None,
    first: tuple[int, int] = (0, 0),
) -> None:
    """Gradients of N:M attention into tensors that the caller gives, on torch's current stream. Checks nothing.

    The forward must have been :func:`dynattn.kernels.cuda.nm_forward` with ``for_backward=True``: then the choice is
    the same, bit for bit.

        dV = (Z ∘ P)ᵀ dO,   dS = P ∘ (Z ∘ dO Vᵀ - Σ dO ∘ O + grad_logsumexp),   dQ = scale · dS K,   dK = scale · dSᵀ Q

    Args:
        grad_out: (batch, heads, q_len, value_dim), dtype of ``query``.
        grad_logsumexp: (batch, heads, q_len), float32.
        query, key, value, mask, pattern, seed: what the forward was given.
        out, logsumexp: what it gave.
        first: batch and head of the forward's tensors that these, a part of them, begin with: dropout draws by them.
        d_query, d_key, d_value: shaped and typed like the inputs; last dimension contiguous, rows at multiples of
            4 bytes.
        d_mask: gradient of a floating-point mask at its full shape, (batch, heads, q_len, kv_len), float32, contiguous;
            the caller sums it to the mask's own. None where it is not wanted.

    Raises:
        ImportError: cuda-core or NVRTC is missing.
        RuntimeError: the compiler or the driver refused; the text has its words.

    Source: arXiv:2203.00091, arXiv:2307.08691.
    """
    device = driver.device(query.device.index)
    with torch.cuda.device(device.index):  # the caller's current device may be another one
        stream = torch.cuda.current_stream(device.index).cuda_stream
        for one in prepare_backward(
            grad_out, grad_logsumexp, query, key, value, mask, out, logsumexp, pattern=pattern, d_query=d_query,
            d_key=d_key, d_value=d_value, d_mask=d_mask, device=device, seed=seed, first=first,
        ):  # fmt: skip
            if one.blocks:
                driver.launch(one.variant, device, one.blocks, one.params, one.tensor_maps, stream)


def prepare_backward(
    grad_out: Tensor,
    grad_logsumexp: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    out: Tensor,
    logsumexp: Tensor,
    *,
    pattern: Pattern,
    d_query: Tensor,
    d_key: Tensor,
    d_value: Tensor,
    d_mask: Tensor | None,
    device: Device,
    seed: Tensor | None = None,
    first: tuple[int, int] = (0, 0),
) -> Launches:
    """The launches for a call of :func:`nm_backward` on ``device``; launches nothing, but clears ``d_mask``.

    Raises:
        ValueError: no variant fits into the device's shared memory, as :func:`dynattn.kernels.cuda.cannot_backward`
            says beforehand.
    """
    query, grad_out, key, value, out = map(launch.aligned, (query, grad_out, key, value, out))
    grad_logsumexp, logsumexp = grad_logsumexp.contiguous(), logsumexp.contiguous()
    batch, heads, q_len, _ = query.shape
    kv_len = value.shape[2]
    kind, mask = launch.mask_of(mask, query, kv_len)
    pattern = launch.of_kernels(pattern)
    row_sums = logsumexp.new_empty(*logsumexp.shape, 2)
    again = launch.prepare(
        query, key, value, mask, out, logsumexp, None, None, None, pattern, device, for_backward=True, seed=seed,
        row_sums=row_sums,
    )  # fmt: skip
    variant = _select(device, query, key, value, pattern, kind)
    if pattern.scale < 0:  # the sign goes into the query, so that larger products are larger scores, as in the forward
        query = launch.aligned(-query)
    splits, blocks = _grid(device, variant, batch * key.shape[1], kv_len)
    maps = ()
    if isinstance(variant, WgmmaBackwardVariant):
        query, key, value, grad_out = map(launch.unexpanded, (query, key, value, grad_out))
        maps = _tensor_maps(query, key, value, grad_out, pattern.stride)
    row_blocks = batch * heads * -(-q_len // _ROW_BLOCK)
    row_terms = logsumexp.new_empty(*logsumexp.shape, _ROW_TERMS)
    sums = logsumexp.new_zeros(splits, row_blocks * _ROW_BLOCK, variant.head_dim)
    if d_mask is not None:
        d_mask.zero_()
    scored = pattern._replace(scale=abs(pattern.scale))
    params = BackwardParams(
        forward=launch.forward_params(
            query, key, value, mask, out, logsumexp, None, None, None, scored, seed, row_sums, first
        ),
        grad_out=grad_out.data_ptr(),
        grad_logsumexp=grad_logsumexp.data_ptr(),
        row_terms=row_terms.data_ptr(),
        query_sums=sums.data_ptr(),
        d_query=d_query.data_ptr(),
        d_key=d_key.data_ptr(),
        d_value=d_value.data_ptr(),
        d_mask=None if d_mask is None else d_mask.data_ptr(),
        grad_out_strides=grad_out.stride()[:3],
        d_query_strides=d_query.stride()[:3],
        d_key_strides=d_key.stride()[:3],
        d_value_strides=d_value.stride()[:3],
        splits=splits,
        sum_columns=variant.head_dim,
        query_scale=pattern.scale,
    )
    tensors = (query, key, value, mask, out, logsumexp, grad_out, grad_logsumexp, row_sums, row_terms, sums, seed)
    before, after = RowTermsVariant(variant.dtype), QueryVariant(variant.dtype)
    return Launches(
        again,
        BackwardLaunch(before, before.blocks(batch * heads * q_len), params, tensors),
        BackwardLaunch(variant, blocks, params, tensors, maps),
        BackwardLaunch(after, after.blocks(row_blocks, variant.head_dim), params, tensors),
    )


def smallest_shared_bytes(head_dim: int) -> int:
    """The least shared memory, in bytes, that the backward needs for ``head_dim`` columns."""
    padded = next(size for size in HEAD_DIMS if size >= head_dim)
    return BackwardVariant("bfloat16", padded, 1, 2).shared_bytes


def _select(
    device: Device, query: Tensor, key: Tensor, value: Tensor, pattern: Pattern, mask: str
) -> BackwardVariant | WgmmaBackwardVariant:
    """The fastest variant with the forward's instructions and padded head_dim, so that scores are summed alike."""
    forward = launch.choose_variant(query, key, value, mask, False, pattern, device, for_backward=True)
    dtype, padded, n, m, stride = forward.dtype, forward.head_dim, forward.n, forward.m, forward.stride
    if forward.kernel == "wgmma":
        return WgmmaBackwardVariant(dtype, padded, n, m, mask, forward.band, stride)
    choices = [
        BackwardVariant(dtype, padded, n, m, mask, forward.band, tiles, stride, forward.dropout)
        for tiles in row_tiles(padded, mask, forward.band)
    ]
    fits = [choice for choice in choices if choice.shared_bytes <= device.shared_bytes]
    if not fits:
        raise ValueError(
            f"nm_backward: a block needs {choices[-1].shared_bytes} bytes of shared memory: the device has "
            f"{device.shared_bytes}; take backend='reference'"
        )
    return next((choice for choice in fits if query.shape[2] > choice.query_tile // 2), fits[-1])


def _grid(device: Device, variant: BackwardVariant | WgmmaBackwardVariant, heads: int, kv_len: int) -> tuple[int, int]:
    """Into how many splits the keys of a head are divided, each with its own sums, and how many blocks that makes."""
    if isinstance(variant, WgmmaBackwardVariant):
        shares = _shares(device, heads, -(-kv_len // variant.key_tile))
        return shares, shares * heads
    blocks = heads * variant.parts
    wanted = -(-_BLOCKS_A_MULTIPROCESSOR * device.multiprocessors // max(1, blocks))
    splits = max(1, min(wanted, -(-kv_len // KEY_TILE), _SPLITS_AT_MOST))
    return splits, blocks * splits if kv_len else 0


def _shares(device: Device, heads: int, key_tiles: int) -> int:
    """How many blocks share the key tiles of a head so that all end earliest, where a multiprocessor holds one
    block."""

    def time(shares: int) -> float:
        rounds = -(-shares * heads // device.multiprocessors)
        return rounds * -(-key_tiles // shares) + _SUMS_COST * shares * heads

    return min(range(1, min(key_tiles, _SPLITS_AT_MOST) + 1), key=time)


def _tensor_maps(query: Tensor, key: Tensor, value: Tensor, grad_out: Tensor, stride: int) -> tuple[TensorMap, ...]:
    """The maps that the copy engine reads, 64 rows at a time. Keys and values also come in halves, for the choice."""
    whole = launch.strided_map(key, stride, 4) if stride > 1 else launch.row_map(key, KEY_TILE)
    key_halves, value_halves = (launch.half_maps(x, stride, KEY_TILE) for x in (key, value))
    return *key_halves, whole, *value_halves, *(launch.row_map(x, KEY_TILE) for x in (query, grad_out))
