"""The instantiations of the backward kernels: which calls each one takes, and what its launch needs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import final

from dynattn.kernels.cuda.variants import (
    COMMON_STRIDES,
    DTYPES,
    ELEMENTS,
    HEAD_DIMS,
    MASK_NAMES,
    MASKS,
    PATTERN_NAMES,
    PATTERNS,
    WGMMA_HEAD_DIMS,
    WGMMA_STRIDES,
)

KEY_TILE = 64  # keys that a block of the ``mma`` kernel owns at a time; a unit of the ``wgmma`` kernel's
_WARPS = 4
_PAIR_PITCH = 128  # bytes of a row of P or dS
_WIDEST_WHOLE = 128  # heads that are wider are done in two parts
_ROW_TERMS_ROWS = 16  # rows of a block of the kernel before
_QUERY_FRAGMENTS = 4  # fragments of 16 queries and 8 columns of a block of the kernel after


@final
@dataclass(frozen=True)
class RowTermsVariant:
    """The kernel before the main one: a figure for each query's row.

    Args:
        dtype: the dtype of out and its gradient: ``bfloat16`` or ``float16``.
    """

    dtype: str

    kernel = "backward_row_terms"
    source = "nm_backward_rows.cu"
    threads = 128
    shared_bytes = 0

    @property
    def name_expression(self) -> str:
        """The instantiation, as NVRTC's ``name_expressions`` take it."""
        return f"dynattn::nm_backward_row_terms<dynattn::{ELEMENTS[self.dtype]}>"

    def blocks(self, rows: int) -> int:
        """Blocks of the grid for ``rows``, the rows of all heads together."""
        return -(-rows // _ROW_TERMS_ROWS)


@final
@dataclass(frozen=True)
class QueryVariant:
    """The kernel after the main one: the query's gradient from the sums of all splits.

    Args:
        dtype: the dtype of the gradient.
    """

    dtype: str

    kernel = "backward_query"
    source = "nm_backward_rows.cu"
    threads = 128
    shared_bytes = 0

    @property
    def name_expression(self) -> str:
        """The instantiation, as NVRTC's ``name_expressions`` take it."""
        return f"dynattn::nm_backward_query<dynattn::{ELEMENTS[self.dtype]}>"

    def blocks(self, row_blocks: int, columns: int) -> int:
        """Blocks of the grid, for so many blocks of 16 queries of all heads and columns of the sums."""
        return -(-row_blocks * (columns // 8) // _QUERY_FRAGMENTS)


@final
@dataclass(frozen=True)
class BackwardVariant:
    """One instantiation of the main kernel.

    Args:
        dtype: the dtype of query, key, value, the gradients: ``bfloat16`` or ``float16``.
        head_dim: columns that the tiles hold; the forward's, so that both sum scores alike.
        n, m: the pattern.
        mask: ``none``, ``bool`` (true: allowed), or added to the scores: ``float32``, ``element`` (of type ``dtype``).
        band: obey ``window`` and ``sinks``.
        row_tiles: blocks of 16 queries that a warp works on.
        stride: how far apart the keys of a group stand.
        dropout: the forward dropped kept weights.
    """

    dtype: str
    head_dim: int
    n: int
    m: int
    mask: str = "none"
    band: bool = False
    row_tiles: int = 1
    stride: int = 1
    dropout: bool = False

    kernel = "backward"
    source = "nm_backward.cu"
    threads = 32 * _WARPS

    @property
    def name_expression(self) -> str:
        """The instantiation, as NVRTC's ``name_expressions`` take it."""
        arguments = [
            f"dynattn::{ELEMENTS[self.dtype]}",
            str(self.head_dim),
            f"dynattn::Pattern::{PATTERN_NAMES[self.n, self.m]}",
            f"dynattn::MaskKind::{MASK_NAMES[self.mask]}",
            str(self.band).lower(),
            str(self.row_tiles),
            str(self.stride),
            str(self.dropout).lower(),
        ]
        return f"dynattn::nm_backward_mma<{', '.join(arguments)}>"

    @property
    def parts(self) -> int:
        """Blocks that share the columns of a head's gradients."""
        return 2 if self.head_dim > _WIDEST_WHOLE else 1

    @property
    def query_tile(self) -> int:
        """Queries that a block takes at a time."""
        return 16 * _WARPS * self.row_tiles

    @property
    def shared_bytes(self) -> int:
        """Dynamic shared memory of a block: keys, values, queries, their gradients, P and dS."""
        pitch = 2 * (-(-self.head_dim // 64) * 64)  # bytes of a row; swizzled in units of 128
        return 2 * KEY_TILE * pitch + 2 * self.query_tile * (pitch + _PAIR_PITCH)


@final
@dataclass(frozen=True)
class WgmmaBackwardVariant:
    """One instantiation of the main kernel for sm_90a.

    Args:
        dtype: the dtype of query, key, value, the gradients: ``bfloat16`` or ``float16``.
        head_dim: columns that the tiles hold; the forward's, so that both sum scores alike.
        n, m: the pattern.
        mask, band: as :class:`BackwardVariant` has them.
        stride: how far apart the keys of a group stand.
    """

    dtype: str
    head_dim: int
    n: int
    m: int
    mask: str = "none"
    band: bool = False
    stride: int = 1

    kernel = "backward_wgmma"
    source = "nm_backward_wgmma.cu"
    groups = 2  # of threads that compute, each with keys of its own
    threads = 128 * (groups + 1)

    @property
    def name_expression(self) -> str:
        """The instantiation, as NVRTC's ``name_expressions`` take it."""
        arguments = [
            f"dynattn::{ELEMENTS[self.dtype]}",
            str(self.head_dim),
            f"dynattn::Pattern::{PATTERN_NAMES[self.n, self.m]}",
            f"dynattn::MaskKind::{MASK_NAMES[self.mask]}",
            str(self.band).lower(),
            str(self.stride),
        ]
        return f"dynattn::nm_backward_wgmma<{', '.join(arguments)}>"

    @property
    def key_tile(self) -> int:
        """Keys that a block owns at a time."""
        return self.groups * 128 // self.head_dim * KEY_TILE

    @property
    def shared_bytes(self) -> int:
        """Dynamic shared memory of a block: keys twice, values; queries and gradients in stages; P and dS; dQ."""
        stages, barriers, alignment = 3 if self.head_dim == 64 else 2, 128, 1024
        row, float_row = 2 * self.head_dim, 4 * self.head_dim
        rows = 3 * self.key_tile * row + KEY_TILE * (2 * stages * row + float_row)
        return rows + 2 * self.key_tile * _PAIR_PITCH + barriers + alignment


AnyBackwardVariant = RowTermsVariant | QueryVariant | BackwardVariant | WgmmaBackwardVariant


def row_tiles(head_dim: int, mask: str, band: bool) -> tuple[int, ...]:
    """Values of ``BackwardVariant.row_tiles`` that fit in registers, fastest first."""
    crowded = band and mask in ("float32", "element")
    return (2, 1) if head_dim <= 64 and not crowded else (1,)


def main_variants() -> Iterator[BackwardVariant]:
    """Every variant of the main kernel, except for strides that are neither 1 nor 16."""
    for dtype, head_dim, (n, m), mask, band, stride, dropout in product(
        DTYPES, HEAD_DIMS, PATTERNS, MASKS, (False, True), COMMON_STRIDES, (False, True)
    ):
        for tiles in row_tiles(head_dim, mask, band):
            yield BackwardVariant(dtype, head_dim, n, m, mask, band, tiles, stride, dropout)


def wgmma_variants() -> Iterator[WgmmaBackwardVariant]:
    """Every variant of the main kernel for sm_90a."""
    for dtype, head_dim, (n, m), mask, band, stride in product(
        DTYPES, WGMMA_HEAD_DIMS, PATTERNS, MASKS, (False, True), WGMMA_STRIDES
    ):
        yield WgmmaBackwardVariant(dtype, head_dim, n, m, mask, band, stride)


def small_variants() -> Iterator[RowTermsVariant | QueryVariant]:
    """Every variant of the kernels before and after it."""
    for dtype in DTYPES:
        yield from (RowTermsVariant(dtype), QueryVariant(dtype))
