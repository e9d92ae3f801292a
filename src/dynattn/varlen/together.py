"""Computes texts by one call of the CPU kernels, which share the threads and read keys in their pages.

All texts of a call are computed at once, or none, but for bfloat16 where a tile engine is the fastest: texts with more
than a few queries are then computed by it, each by itself. That is how :func:`dynattn.attention` computes them, and it
takes less time, gathered pages included, but for very short texts.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor

from dynattn import backends
from dynattn.backends import Call, Result
from dynattn.backends.cpu import CPU, Tiles
from dynattn.kernels import cpu
from dynattn.kernels.pattern import Pattern
from dynattn.methods.base import Choice
from dynattn.methods.nm import NM
from dynattn.ops import buffers
from dynattn.ops.arguments import isa_of, rows_contiguous
from dynattn.ops.library import unobserved
from dynattn.varlen.texts import Bounds, check_pages

_NO_PAGE = 2**31 - 1  # more pages than there can be


class Kernel(NamedTuple):
    """What computes texts at once: an instruction set, and the numbers of the texts."""

    isa: str
    numbers: list[int]


class Packed(NamedTuple):
    """What the kernels computed: the output, (tokens, heads, value_dim), and each text's results."""

    out: Tensor
    results: list[Result]


def _flat(query: Tensor, rows: int) -> tuple[Tensor, ...]:
    """The certificate to fill, text by text."""
    dtypes = (torch.float32, torch.float32, torch.int32, torch.int32)
    return tuple(query.new_empty(rows, dtype=dtype) for dtype in dtypes)


def _by_text(out: Tensor, flat: tuple[Tensor, ...], heads: int, lengths: list[int]) -> Iterator[Result]:
    start = 0
    for length in lengths:
        rows = [x[heads * start : heads * (start + length)].view(1, heads, length) for x in flat]
        yield Result(out[:, :, start : start + length], *rows)
        start += length


def kernel_for(call: Call, backend: str, bounds: Bounds, block_table: Tensor | None) -> Kernel | None:
    """What computes texts of a call at once, and which; None where each has to be computed by itself.

    Args:
        call: the call, as if the texts were one.
        backend: as :func:`dynattn.varlen_attention` takes it.
        bounds, block_table: where the texts lie.
    """
    if call.method.choice is not Choice.GROUPS or not isinstance(call.method, NM):
        return None
    if call.needs_grad or call.dropout_p or not unobserved(call.query, call.key, call.value):
        return None
    if backend != "auto" and not str(backend).startswith("cpu"):  # a text may be what another backend takes
        return None
    if block_table is not None:
        pages_fit = call.key.shape[2] % cpu.PAGE_KEYS == 0 and block_table.shape[1] > 0
        if not pages_fit or block_table.device.type != "cpu":
            return None
    chosen = backends.route(call.problem, backend)
    if not isinstance(chosen, CPU) or isinstance(chosen, Tiles):
        return None
    isa = isa_of(chosen.name)
    numbers = [
        number
        for number, length in enumerate(bounds.queries)
        if chosen.name != "cpu" or cpu.nm_isa(call.query.dtype, length) == isa
    ]
    return Kernel(isa, numbers) if numbers else None


def kernel_table(block_table: Tensor) -> Tensor:
    """A table of pages as the kernel reads it: contiguous and int32, in which there is no page of a greater number."""
    if block_table.dtype != torch.int32:
        block_table = block_table.clamp(-1, _NO_PAGE).to(torch.int32)
    return block_table.contiguous()


def attend(call: Call, isa: str, bounds: Bounds, block_table: Tensor | None) -> Packed:
    """Compute all texts of a call.

    Args:
        call: the call: (1, heads, tokens, head_dim), with pages (pages, kv_heads, page_size, head_dim) for keys.
        isa: the instruction set.
        bounds, block_table: where the texts lie.

    Raises:
        ValueError: ``block_table`` names a page that there is not.
    """
    query, key, value = (rows_contiguous(x) for x in (call.query, call.key, call.value))
    _, heads, tokens, _ = query.shape
    out, rows = buffers.packed_output(query, value)
    flat = _flat(query, heads * tokens) if call.aux else None
    queries, starts, counts = (
        torch.tensor(numbers, dtype=torch.int64, device="cpu")
        for numbers in ([0, *accumulate(bounds.queries)], bounds.key_starts, bounds.keys)
    )
    found = cpu.nm_texts(
        query, key, value, rows, *(flat or (None,) * 4), Pattern.of(call.method, call.causal, call.scale), isa,  # type: ignore[arg-type]
        query_start=queries, key_start=starts, key_count=counts,
        block_table=None if block_table is None else kernel_table(block_table),
    )  # fmt: skip
    if not found:
        check_pages(block_table, bounds.keys, call.key.transpose(1, 2))  # type: ignore[arg-type]
        raise RuntimeError(
            "varlen_attention: block_table was refused, though its pages exist; this is a bug in dynattn"
        )
    return Packed(out, list(_by_text(rows, flat, heads, bounds.queries)) if flat else [])
