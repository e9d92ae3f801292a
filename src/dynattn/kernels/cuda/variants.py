"""The instantiations of the forward kernels: which calls each one takes, and what its launch needs.

A variant fixes what the compiler must know: element type, padded head dimension, pattern, kind of mask, whether kept
mass and counts are asked for (``aux``), whether window or sinks widen the choice (``band``) and whether kept weights
are dropped (``dropout``). Lengths, strides, causality, groups of heads, the scale, and dropout's seed and probability
are launch parameters (``params.cuh``).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Protocol, final

HEAD_DIMS = (32, 64, 96, 128, 192, 256)
WGMMA_HEAD_DIMS = (64, 128)
PATTERNS = ((1, 2), (2, 4))
DTYPES = ("bfloat16", "float16")
TF32_HEAD_DIMS = (32, 64, 96, 128)  # for float32 inputs, which are rounded to TF32 and whose rows are twice as long
MASKS = ("none", "bool", "float32", "element")
WGMMA_STRIDES = (1, 16)
STRIDES = (1, 2, 4, 8, 16)
COMMON_STRIDES = (1, 16)  # the stride of the published method, and the one that keeps the most mass

ELEMENTS = {"bfloat16": "BFloat16", "float16": "Float16", "tf32": "TensorFloat32"}
PATTERN_NAMES = {(1, 2): "one_of_two", (2, 4): "two_of_four"}
MASK_NAMES = {"none": "none", "bool": "boolean", "float32": "float32", "element": "element"}


class Instantiation(Protocol):
    """What loader and driver must know of a variant of any kernel. A variant is hashable, too."""

    @property
    def kernel(self) -> str: ...
    @property
    def source(self) -> str: ...
    @property
    def name_expression(self) -> str: ...
    @property
    def threads(self) -> int: ...
    @property
    def shared_bytes(self) -> int: ...


@final
@dataclass(frozen=True)
class Variant:
    """One instantiation of a kernel template.

    Args:
        kernel: ``mma`` (sm_80 and later, ``mma.sp``) or ``wgmma`` (sm_90a, TMA and ``wgmma.mma_async.sp``).
        dtype: the dtype of query, key, value and out: ``bfloat16``, ``float16``, or, with ``mma`` alone, ``tf32``,
            which is float32 in memory.
        head_dim: columns that the tiles hold; problems with fewer are padded with zeros as they are read.
        n, m: the pattern.
        mask: ``none``, ``bool`` (true: allowed), or added to the scores: ``float32``, ``element`` (of type ``dtype``).
        aux: also write kept mass and the counts of kept and allowed pairs; with ``band``, wgmma before a backward only.
        band: obey ``window`` and ``sinks``.
        row_tiles: blocks of 16 queries that a warp of the ``mma`` kernel works on; 2 halves the reads of shared
            memory, 1 makes twice as many thread blocks, for problems too small to fill the device.
        stride: how far apart the keys of a group stand.
        dropout: drop kept weights; mma only.
    """

    kernel: str
    dtype: str
    head_dim: int
    n: int
    m: int
    mask: str = "none"
    aux: bool = False
    band: bool = False
    row_tiles: int = 1
    stride: int = 1
    dropout: bool = False

    @property
    def source(self) -> str:
        """File in this folder that holds the template."""
        return f"nm_{self.kernel}.cu"

    @property
    def name_expression(self) -> str:
        """The instantiation, as NVRTC's ``name_expressions`` take it."""
        arguments = [
            f"dynattn::{ELEMENTS[self.dtype]}",
            str(self.head_dim),
            f"dynattn::Pattern::{PATTERN_NAMES[self.n, self.m]}",
            f"dynattn::MaskKind::{MASK_NAMES[self.mask]}",
        ]
        arguments += [str(self.aux).lower(), str(self.band).lower()]
        arguments += [str(self.row_tiles)] if self.kernel == "mma" else []
        arguments.append(str(self.stride))
        arguments += [str(self.dropout).lower()] if self.kernel == "mma" else []
        return f"dynattn::nm_forward_{self.kernel}<{', '.join(arguments)}>"

    @property
    def threads(self) -> int:
        """Threads of a block: 4 warps, or one loading and two computing groups of 4."""
        return 128 if self.kernel == "mma" else 384

    @property
    def query_tile(self) -> int:
        """Queries of a block. The grid is ``(ceil(q_len / query_tile) * heads * batch, 1, 1)``."""
        return 64 * self.row_tiles if self.kernel == "mma" else 128

    @property
    def key_tile(self) -> int:
        """Keys that a block reads at a time."""
        return 64 if self.kernel == "mma" else 128

    @property
    def element_bytes(self) -> int:
        """Bytes that one element takes in memory."""
        return 4 if self.dtype == "tf32" else 2

    @property
    def shared_bytes(self) -> int:
        """Dynamic shared memory of a block."""
        row = self.head_dim * self.element_bytes
        pitch = -(-row // 128) * 128  # swizzled in units of 128 bytes
        if self.kernel == "wgmma":
            stages, barriers, alignment = 2, 128, 1024
            return stages * 2 * self.key_tile * pitch + barriers + alignment
        query = 0 if row * self.row_tiles <= 256 else self.query_tile * pitch
        return 2 * self.key_tile * pitch + query  # one tile of keys, one of values, and queries too many for registers


def row_tiles(head_dim: int, dtype: str = "bfloat16") -> tuple[int, ...]:
    """Values of ``Variant.row_tiles`` that fit in registers, fastest first for problems that fill the device."""
    return (2, 1) if head_dim <= 128 and dtype != "tf32" else (1,)


def variants() -> Iterator[Variant]:
    """Every variant there is, except for strides that are neither 1 nor 16."""
    for dtype, head_dim, (n, m), mask, aux, band, stride, dropout in product(
        DTYPES, HEAD_DIMS, PATTERNS, MASKS, (False, True), (False, True), COMMON_STRIDES, (False, True)
    ):
        for tiles in row_tiles(head_dim):
            yield Variant("mma", dtype, head_dim, n, m, mask, aux, band, tiles, stride, dropout)
    for head_dim, (n, m), mask, aux, band, stride, dropout in product(
        TF32_HEAD_DIMS, PATTERNS, MASKS[:-1], (False, True), (False, True), COMMON_STRIDES, (False, True)
    ):
        yield Variant("mma", "tf32", head_dim, n, m, mask, aux, band, 1, stride, dropout)
    for dtype, head_dim, (n, m), mask, (aux, band), stride in product(
        DTYPES, WGMMA_HEAD_DIMS, PATTERNS, MASKS, ((False, False), (False, True), (True, False)), WGMMA_STRIDES
    ):
        yield Variant("wgmma", dtype, head_dim, n, m, mask, aux, band, stride=stride)
