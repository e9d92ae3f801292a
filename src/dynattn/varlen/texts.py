"""Cuts packed queries, keys and values into texts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import accumulate, pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dynattn.ops import sharding

_INTS = (torch.int32, torch.int64)


class Text(NamedTuple):
    """One text, as :func:`dynattn.attention` takes it: (1, heads, length, head_dim), views where they can be."""

    query: Tensor
    key: Tensor
    value: Tensor


class Jagged(NamedTuple):
    """What jagged nested tensors hold: their tokens one after another, and where each text begins."""

    query: Tensor
    key: Tensor
    value: Tensor
    cu_seq_q: Tensor
    cu_seq_k: Tensor


def of_jagged(query: Any, key: Any, value: Any) -> Jagged:
    """Take nested tensors (texts, length, heads, head_dim) apart.

    Raises:
        TypeError: not all of them are nested, or one has another layout.
        ValueError: key and value have different lengths, or query and key a different number of texts.
    """
    for name, x in (("query", query), ("key", key), ("value", value)):
        if not x.is_nested or x.layout is not torch.jagged:
            raise TypeError(
                f"varlen_attention: query, key and value must all be jagged nested tensors, or none of them: {name} is "
                "not; make it with torch.nested.nested_tensor(…, layout=torch.jagged)"
            )
        if x.dim() != 4 or x._ragged_idx != 1 or x.lengths() is not None:
            raise TypeError(
                f"varlen_attention: a jagged {name} must be (texts, length, heads, head_dim), without holes, length "
                "being the jagged dimension: use .transpose(1, 2) where heads come first, and .contiguous()"
            )
    q_bounds, k_bounds, v_bounds = (x.offsets() for x in (query, key, value))
    if len(q_bounds) != len(k_bounds) or not torch.equal(k_bounds, v_bounds):
        raise ValueError(
            "varlen_attention: jagged key and value must have the same lengths, and as many texts as query: got "
            f"{k_bounds.diff().tolist()} and {v_bounds.diff().tolist()} for {len(q_bounds) - 1} texts; make them from "
            "the same texts"
        )
    return Jagged(query.values(), key.values(), value.values(), q_bounds, k_bounds)


class Bounds(NamedTuple):
    """Where each text lies, in numbers.

    Attributes:
        queries: how many queries each text has.
        key_starts: each text's first key; empty with pages.
        keys: how many keys of each text take part.
    """

    queries: list[int]
    key_starts: list[int]
    keys: list[int]

    def of(self, numbers: Sequence[int]) -> Bounds:
        """Those of some texts alone."""
        return Bounds(*([column[number] for number in numbers] if column else [] for column in self))


def read(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seq_q: Tensor | None,
    cu_seq_k: Tensor | None,
    seqused_k: Tensor | None,
    block_table: Tensor | None,
) -> Bounds:
    """Check how packed tensors are laid out, and read where their texts lie.

    Args:
        query, key, value, cu_seq_q, cu_seq_k, seqused_k, block_table: as :func:`dynattn.varlen_attention` takes them.

    Raises:
        TypeError, ValueError: as :func:`dynattn.varlen_attention` says.
    """
    check_layout(query, key, value, paged=block_table is not None)
    q_lens = _lengths("cu_seq_q", cu_seq_q, query)
    if block_table is not None:
        return Bounds(q_lens, [], _in_pages(key, block_table, seqused_k, len(q_lens)))
    k_lens = q_lens if cu_seq_k is None and len(key) == len(query) else _lengths("cu_seq_k", cu_seq_k, key)
    if len(k_lens) != len(q_lens):
        raise ValueError(
            f"varlen_attention: cu_seq_k must count the texts of cu_seq_q: got {len(k_lens)} texts for "
            f"{len(q_lens)}; a text without keys has a length of 0"
        )
    used = k_lens if seqused_k is None else _used(seqused_k, k_lens, "the keys that cu_seq_k gives a text")
    return Bounds(q_lens, [0, *accumulate(k_lens)][:-1], used)


def cut(
    query: Tensor, key: Tensor, value: Tensor, bounds: Bounds, block_table: Tensor | None, numbers: Sequence[int]
) -> list[Text]:
    """Some texts of packed tensors, each by itself; their pages are gathered.

    Args:
        query, key, value, block_table: as :func:`dynattn.varlen_attention` takes them.
        bounds: what :func:`read` found.
        numbers: which texts.

    Raises:
        ValueError: ``block_table`` names a page that there is not.
    """
    own, each = bounds.of(numbers), query.split(bounds.queries)
    queries = [each[number] for number in numbers]
    if block_table is None:
        spans = [slice(start, start + count) for start, count in zip(own.key_starts, own.keys, strict=True)]
        keys, values = [key[span] for span in spans], [value[span] for span in spans]
    else:
        tables = [block_table[number] for number in numbers]
        check_pages(tables, own.keys, key)
        keys, values = _gather(key, value, tables, own.keys)
    return [Text(*map(_of_one, parts)) for parts in zip(queries, keys, values, strict=True)]


def check_pages(tables: Iterable[Tensor], counts: list[int], key: Tensor) -> None:
    """Refuse a table that names a page that there is not, for a key that takes part.

    Args:
        tables: the pages of each text, as in the rows of the ``block_table`` that :func:`dynattn.varlen_attention`
            takes.
        counts: how many keys of each text take part.
        key: the pool of pages.
    """
    pages, size = key.shape[:2]
    for row, count in zip(tables, counts, strict=True):
        own = row[: -(-count // size)]
        if len(own) and not 0 <= int(own.min()) <= int(own.max()) < pages:
            raise ValueError(
                f"varlen_attention: block_table must name pages between 0 and {pages - 1}: got {own.tolist()} for "
                f"{count} keys; only entries behind a text's last page may hold other numbers"
            )


def _of_one(part: Tensor) -> Tensor:
    return part.transpose(0, 1).unsqueeze(0)


def _in_pages(key: Tensor, block_table: Any, seqused_k: Tensor | None, texts: int) -> list[int]:
    """How many keys of each text take part, where they lie in pages."""
    if seqused_k is None:
        raise ValueError("varlen_attention: block_table needs seqused_k, the number of keys of each text; pass both")
    if not isinstance(block_table, Tensor) or block_table.dtype not in _INTS or block_table.dim() != 2:
        raise TypeError("varlen_attention: block_table must be an int32 or int64 tensor of shape (texts, pages)")
    _refuse_without_numbers("block_table", block_table)
    if len(block_table) != texts:
        raise ValueError(
            f"varlen_attention: block_table must have a row for each text: got {len(block_table)} rows for {texts} "
            "texts; cu_seq_q says how many texts there are"
        )
    return _used(seqused_k, [block_table.shape[1] * key.shape[1]] * texts, "what the pages of a text hold")


def _gather(
    key: Tensor, value: Tensor, tables: Iterable[Tensor], counts: list[int]
) -> tuple[list[Tensor], list[Tensor]]:
    """Each text's keys and values out of their pages."""
    rows = [row[: -(-count // key.shape[1])].long() for row, count in zip(tables, counts, strict=True)]
    return tuple(  # type: ignore[return-value]
        [pool[own].flatten(0, 1)[:count] for own, count in zip(rows, counts, strict=True)] for pool in (key, value)
    )


def _used(seqused_k: Tensor, most: list[int], what: str) -> list[int]:
    if not isinstance(seqused_k, Tensor) or seqused_k.dtype not in _INTS or seqused_k.shape != (len(most),):
        raise TypeError(f"varlen_attention: seqused_k must be an int32 or int64 tensor of shape ({len(most)},)")
    _refuse_without_numbers("seqused_k", seqused_k)
    used = seqused_k.tolist()
    if not all(0 <= count <= limit for count, limit in zip(used, most, strict=True)):
        raise ValueError(
            f"varlen_attention: seqused_k must lie between 0 and {what}: got {used} where there are {most}; "
            "count the keys of each text that are filled"
        )
    return used


def _refuse_without_numbers(name: str, x: Tensor) -> None:
    """Refuse lengths and pages that cannot be read."""
    what = {
        "on the meta device": x.is_meta,
        "a DTensor": sharding.is_sharded(x),
        "mapped by vmap": torch._C._functorch.is_batchedtensor(x),  # pyright: ignore[reportAttributeAccessIssue]
    }
    found = [how for how, so in what.items() if so]
    if found:
        raise ValueError(
            f"varlen_attention: {name} must be a plain tensor that holds numbers: it is {found[0]}; keep lengths and "
            "pages out of it, the same for all"
        )


def _lengths(name: str, bounds: Tensor | None, tokens: Tensor) -> list[int]:
    """The lengths of the texts that ``bounds`` delimits."""
    which = "queries" if name == "cu_seq_q" else "keys"
    if not isinstance(bounds, Tensor) or bounds.dtype not in _INTS or bounds.dim() != 1 or len(bounds) < 1:
        got = f"{tuple(bounds.shape)} of {bounds.dtype}" if isinstance(bounds, Tensor) else repr(bounds)
        raise TypeError(
            f"varlen_attention: {name} must be an int32 or int64 tensor of shape (texts + 1,): got {got}; it holds 0 "
            "and the lengths' running sum"
        )
    _refuse_without_numbers(name, bounds)
    numbers = bounds.tolist()
    lengths = [end - start for start, end in pairwise(numbers)]
    if numbers[0] != 0 or numbers[-1] != len(tokens) or min(lengths, default=0) < 0:
        raise ValueError(
            f"varlen_attention: {name} must rise from 0 to the number of {which}, {len(tokens)}: got {numbers}; "
            "torch.nn.functional.pad(lengths.cumsum(0), (1, 0)) makes it"
        )
    return lengths


def check_layout(query: Tensor, key: Tensor, value: Tensor, *, paged: bool) -> None:
    """Refuse packed tensors of other shapes than :func:`dynattn.varlen_attention` takes.

    Args:
        query, key, value: as :func:`dynattn.varlen_attention` takes them.
        paged: whether keys and values lie in pages.
    """
    for name, x in (("query", query), ("key", key), ("value", value)):
        wanted = "(pages, page_size, kv_heads, head_dim)" if paged and name != "query" else "(tokens, heads, head_dim)"
        if x.dim() != wanted.count(",") + 1:
            raise ValueError(f"varlen_attention: {name} must be {wanted}: got {tuple(x.shape)}; reshape it")
    if key.shape[:-1] != value.shape[:-1]:
        raise ValueError(
            "varlen_attention: key and value must have the same tokens and heads: got "
            f"{tuple(key.shape)} and {tuple(value.shape)}; cut both to the same keys"
        )
    if paged and key.shape[1] < 1:
        raise ValueError(f"varlen_attention: a page must hold at least one key: got {tuple(key.shape)}; see page_size")
