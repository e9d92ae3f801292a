"""Turns a call of the forward into a launch: it chooses the variant and the grid, and packs the parameters.

:func:`prepare` only reads shapes, strides and addresses. So it works on tensors of any device, and its result can be
looked at, or run by an emulator, where there is no GPU. :func:`nm_forward` prepares and launches on torch's current
stream. It waits for nothing and takes no memory but torch's, so that CUDA graphs can capture it. Between calls it keeps
the loaded kernels, and the descriptors of tensors seen before.
"""

from __future__ import annotations

import ctypes
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from dynattn.kernels.cuda import driver
from dynattn.kernels.cuda.driver import Device, TensorMap
from dynattn.kernels.cuda.variants import HEAD_DIMS, WGMMA_HEAD_DIMS, WGMMA_STRIDES, Variant, row_tiles
from dynattn.kernels.pattern import Pattern
from dynattn.maths.dropout import threshold

DTYPES = {torch.bfloat16: "bfloat16", torch.float16: "float16", torch.float32: "tf32"}
HEAD_DIM_STEP = 8  # rows are copied in pieces of 16 bytes

_ALIGNMENT = 16  # bytes
_MMA_AT_MOST = 32  # up to here wgmma's tile of 64 is half padding or more, and mma.sp runs at over half of wgmma's rate
_WHOLE = 2**31 - 1  # the size of a window that holds every key
_BLOCKS_A_MULTIPROCESSOR = 2  # below this many blocks of the large query tile, the small one spreads the work better

_NO_STRIDES = (0, 0, 0, 0)
_Strides3 = ctypes.c_longlong * 3
_Strides4 = ctypes.c_longlong * 4


class ForwardParams(ctypes.Structure):
    """``dynattn::ForwardParams`` of params.cuh, field by field."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("query", "key", "value", "mask", "out")),
        *((name, ctypes.c_void_p) for name in ("logsumexp", "kept_mass", "kept", "allowed", "seed", "row_sums")),
        *((name, _Strides3) for name in ("query_strides", "key_strides", "value_strides", "out_strides")),
        ("mask_strides", _Strides4),
        *((name, ctypes.c_int) for name in ("batch", "heads", "kv_heads", "q_len", "kv_len")),
        *((name, ctypes.c_int) for name in ("head_dim", "value_dim", "window", "sinks", "causal")),
        ("scale", ctypes.c_float),
        ("drop_below", ctypes.c_uint32),
        ("keep_factor", ctypes.c_float),
        ("first_batch", ctypes.c_int),
        ("first_head", ctypes.c_int),
    )


class Launch(NamedTuple):
    """What a launch needs, as plain data.

    Attributes:
        variant: the kernel.
        blocks: how many blocks the one-dimensional grid has; 0 where there is nothing to do.
        params: the first argument of the kernel.
        tensor_maps: its further arguments: keys 4i and 4i + 1, keys 4i + 2 and 4i + 3, values; none for ``mma``.
        tensors: the tensors that ``params`` points into, which must live until the kernel is on the stream.
    """

    variant: Variant
    blocks: int
    params: ForwardParams
    tensor_maps: tuple[TensorMap, ...]
    tensors: tuple[Tensor | None, ...]


def nm_forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    out: Tensor,
    logsumexp: Tensor,
    kept_mass: Tensor | None,
    kept: Tensor | None,
    allowed: Tensor | None,
    pattern: Pattern,
    for_backward: bool = False,
    seed: Tensor | None = None,
) -> None:
    """N:M attention, forward, into tensors that the caller gives, on torch's current stream. Checks nothing.

        out = (Z ∘ softmax(scale · QKᵀ + mask, over the pairs that N:M keeps)) V

    with Z dropout's factors (:mod:`dynattn.maths.dropout`), 1 without.

    Args:
        query: (batch, heads, q_len, head_dim), bfloat16, float16, or float32, which is rounded to TF32; head_dim and
            value_dim multiples of 8.
        key: (batch, kv_heads, kv_len, head_dim).
        value: (batch, kv_heads, kv_len, value_dim).
        mask: broadcasts to (batch, heads, q_len, kv_len); bool (True: allowed) or floating point (added); or None.
        out: (batch, heads, q_len, value_dim), dtype of ``query``, last dimension contiguous.
        logsumexp: (batch, heads, q_len), float32, contiguous.
        kept_mass, kept, allowed: (batch, heads, q_len), contiguous, float32, int32 and int32; or all None.
        pattern: what to keep and how to score: 1:2 or 2:4, stride 1, 2, 4, 8 or 16; or N == M.
        for_backward: :func:`dynattn.kernels.cuda.nm_backward` will follow: take the kernel whose choice it repeats.
        seed: the seed of dropout, one int64 on the device, which the kernel reads when it runs; None where the
            pattern's ``dropout_p`` is 0.

    Raises:
        ImportError: cuda-core or NVRTC is missing.
        RuntimeError: the compiler or the driver refused; the text has its message.

    Source: arXiv:2203.00091.
    """
    device = driver.device(query.device.index)
    with torch.cuda.device(device.index):  # the caller's current device may be another one
        launch = prepare(
            query, key, value, mask, out, logsumexp, kept_mass, kept, allowed,
            pattern, device, for_backward, seed,
        )  # fmt: skip
        if launch.blocks:
            stream = torch.cuda.current_stream(device.index).cuda_stream
            driver.launch(launch.variant, device, launch.blocks, launch.params, launch.tensor_maps, stream)


def prepare(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    out: Tensor,
    logsumexp: Tensor,
    kept_mass: Tensor | None,
    kept: Tensor | None,
    allowed: Tensor | None,
    pattern: Pattern,
    device: Device,
    for_backward: bool = False,
    seed: Tensor | None = None,
    row_sums: Tensor | None = None,
) -> Launch:
    """The launch for a call of :func:`nm_forward` on ``device``. Nothing is launched yet.

    ``row_sums``: (batch, heads, q_len, 2), float32, contiguous. With it the kernel reads ``logsumexp``, and for rows of
    which that does not tell enough it writes ``row_sums``, and nothing else.
    """
    query, key, value = aligned(query), aligned(key), aligned(value)
    batch, heads, q_len, _ = query.shape
    mask_kind, mask = mask_of(mask, query, value.shape[2])
    pattern = of_kernels(pattern)
    variant = choose_variant(query, key, value, mask_kind, kept is not None, pattern, device, for_backward)
    if variant.kernel == "wgmma":
        key, value = unexpanded(key), unexpanded(value)
    params = forward_params(query, key, value, mask, out, logsumexp, kept_mass, kept, allowed, pattern, seed, row_sums)
    maps = _tensor_maps(key, value, variant.stride) if variant.kernel == "wgmma" else ()
    blocks = -(-q_len // variant.query_tile) * heads * batch
    return Launch(variant, blocks, params, maps, (query, key, value, mask, seed, row_sums))


def forward_params(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, out: Tensor, logsumexp: Tensor,
    kept_mass: Tensor | None, kept: Tensor | None, allowed: Tensor | None, pattern: Pattern, seed: Tensor | None,
    row_sums: Tensor | None = None, first: tuple[int, int] = (0, 0),
) -> ForwardParams:  # fmt: skip
    """The bytes that say where the tensors lie, for tensors that :func:`aligned` and :func:`mask_of` gave.

    ``first`` as :func:`dynattn.kernels.cuda.nm_backward` has it.
    """
    batch, heads, q_len, head_dim = query.shape
    _, kv_heads, kv_len, value_dim = value.shape
    first_batch, first_head = first
    return ForwardParams(
        query=query.data_ptr(),
        key=key.data_ptr(),
        value=value.data_ptr(),
        mask=_address(mask),
        out=out.data_ptr(),
        logsumexp=logsumexp.data_ptr(),
        kept_mass=_address(kept_mass),
        kept=_address(kept),
        allowed=_address(allowed),
        seed=_address(seed),
        row_sums=_address(row_sums),
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
        window=pattern.window,
        sinks=pattern.sinks,
        causal=pattern.causal,
        scale=pattern.scale,
        drop_below=threshold(pattern.dropout_p),
        keep_factor=1 / (1 - pattern.dropout_p),
        first_batch=first_batch,
        first_head=first_head,
    )


def _address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def choose_variant(
    query: Tensor, key: Tensor, value: Tensor, mask_kind: str, aux: bool, pattern: Pattern, device: Device,
    for_backward: bool = False,
) -> Variant:  # fmt: skip
    """The kernel for a pattern of the kernels and tensors whose rows are aligned; ``mask_kind`` as variants have it.

    ``for_backward``: one whose choice a backward kernel repeats. Then only shapes decide, not how many heads and not
    whether kept mass is asked for: a backward may get tensors that were saved elsewhere, with other strides, and a few
    heads at a time. The ``wgmma`` kernels take the same calls, forward and backward.
    """
    batch, heads, q_len, head_dim = query.shape
    band = pattern.window > 0 or pattern.sinks > 0
    expanded = 0 in key.stride() or 0 in value.stride()  # such tensors need a copy, but not for the mma kernel
    # with a band, the sums of what is dropped do not fit in registers beside both halves of every group
    crowded = aux and band
    tma = _fits_tma(value.shape[2], pattern.stride) and (for_backward or not (expanded or crowded))
    tma = tma and min(query.numel(), key.numel(), value.numel()) > 0  # an empty tensor has no valid map
    return _select(
        device, DTYPES[query.dtype], max(head_dim, value.shape[3]), pattern.n, pattern.m, mask_kind, aux, band,
        pattern.stride, pattern.dropout_p > 0, q_len, batch * heads, tma=tma,
    )  # fmt: skip


def of_kernels(pattern: Pattern) -> Pattern:
    """What the kernels run for ``pattern``: dense attention is 1:2 with a window over everything."""
    if pattern.n < pattern.m:
        return pattern
    return pattern._replace(n=1, m=2, window=_WHOLE, sinks=0, stride=1)


@lru_cache(maxsize=4096)
def _select(
    device: Device, dtype: str, head_dim: int, n: int, m: int, mask: str, aux: bool, band: bool, stride: int,
    dropout: bool, q_len: int, rows: int, *, tma: bool,
) -> Variant:  # fmt: skip
    """The fastest variant that takes this; ``rows`` is batch · heads, ``tma`` whether wgmma's copies fit."""
    in_registers = dtype != "tf32" and _MMA_AT_MOST < head_dim <= WGMMA_HEAD_DIMS[-1]
    if device.arch == "sm_90a" and tma and in_registers and stride in WGMMA_STRIDES and not dropout:
        padded = next(size for size in WGMMA_HEAD_DIMS if size >= head_dim)
        return Variant("wgmma", dtype, padded, n, m, mask, aux, band, stride=stride)
    padded = next(size for size in HEAD_DIMS if size >= head_dim)
    choices = [
        Variant("mma", dtype, padded, n, m, mask, aux, band, tiles, stride, dropout)
        for tiles in row_tiles(padded, dtype)
    ]
    fits = [choice for choice in choices if choice.shared_bytes <= device.shared_bytes]
    enough = _BLOCKS_A_MULTIPROCESSOR * device.multiprocessors
    return next((x for x in fits if -(-q_len // x.query_tile) * rows >= enough), fits[-1])


def aligned(x: Tensor) -> Tensor:
    """``x``, or a copy of it, whose rows are contiguous and start at multiples of 16 bytes."""
    step = _ALIGNMENT // x.element_size()
    strides = x.stride()
    if strides[3] == 1 and x.data_ptr() % _ALIGNMENT == 0 and not any(stride % step for stride in strides[:3]):
        return x
    return x.clone(memory_format=torch.contiguous_format)


def mask_of(mask: Tensor | None, query: Tensor, kv_len: int) -> tuple[str, Tensor | None]:
    """The kind of the mask, and the mask in a dtype that the kernels read, expanded to its full shape."""
    if mask is None:
        return "none", None
    mask = mask if mask.dtype in (torch.bool, query.dtype) else mask.float()
    kind = {torch.bool: "bool", torch.float32: "float32"}.get(mask.dtype, "element")
    return kind, mask.expand(*query.shape[:3], kv_len)


def unexpanded(x: Tensor) -> Tensor:
    """``x``, or a copy of it where a dimension is an expanded one, which a tensor map cannot describe."""
    return x.clone(memory_format=torch.contiguous_format) if 0 in x.stride() else x


def _fits_tma(kv_len: int, stride: int) -> bool:
    """Whether tensor maps of keys read no row past the end."""
    # they read past the end where the length is odd, since keys come in pairs, or is not a multiple of the stride
    return kv_len % max(2, stride) == 0 and kv_len >= 4


def _tensor_maps(key: Tensor, value: Tensor, stride: int) -> tuple[TensorMap, ...]:
    """Keys 4i and 4i + 1, keys 4i + 2 and 4i + 3, and values; with a stride, keys twice, and values.

    The two of the keys let one copy fetch every other pair of rows, so that each group of four keys comes to lie in
    one thread's accumulators. With a stride, a dimension runs over the keys that stand ``stride`` apart and the next
    over those between; then a box of 2 (keys) or 4 (values) by ``stride`` brings the members of groups together.
    """
    if stride > 1:
        return *half_maps(key, stride, 128), strided_map(value, stride, 4)
    return *half_maps(key, stride, 128), row_map(value, 128)


def half_maps(x: Tensor, stride: int, rows: int) -> tuple[TensorMap, TensorMap]:
    """Maps of rows 4i and 4i + 1, and of rows 4i + 2 and 4i + 3, ``rows`` at a time; with a stride, 64 positions at a
    time."""
    if stride > 1:
        members = strided_map(x, stride, 2)
        return members, members
    batch, kv_heads, kv_len, columns = x.shape
    batch_stride, head_stride, row = x.stride()[:3]
    low, high = (
        TensorMap(
            x.data_ptr() + first * row * x.element_size(), DTYPES[x.dtype],
            (columns, 2, -(-(kv_len - first) // 4), kv_heads, batch), (row, 4 * row, head_stride, batch_stride),
            (64, 2, rows // 4, 1, 1),
        )
        for first in (0, 2)
    )  # fmt: skip
    return low, high


def row_map(x: Tensor, rows: int) -> TensorMap:
    """A map that copies ``rows`` rows at a time."""
    batch, heads, length, columns = x.shape
    batch_stride, head_stride, row = x.stride()[:3]
    sizes, strides = (columns, length, heads, batch), (row, head_stride, batch_stride)
    return TensorMap(x.data_ptr(), DTYPES[x.dtype], sizes, strides, (64, rows, 1, 1))


def strided_map(x: Tensor, stride: int, members: int) -> TensorMap:
    """A map that copies ``members`` keys of each of ``stride`` groups at a time."""
    batch, kv_heads, kv_len, columns = x.shape
    batch_stride, head_stride, row = x.stride()[:3]
    return TensorMap(
        x.data_ptr(), DTYPES[x.dtype], (columns, kv_len // stride, stride, kv_heads, batch),
        (stride * row, row, head_stride, batch_stride), (64, members, stride, 1, 1),
    )  # fmt: skip
