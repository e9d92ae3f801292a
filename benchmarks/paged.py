"""Times decoding over keys in pages against the same keys one after another, and against gathering the pages first.

    python benchmarks/paged.py          # half a minute: benchmarks/results/paged.json; needs an idle machine
    python benchmarks/paged.py table    # the table of docs/varlen.md from the record
    python benchmarks/paged.py small    # a few short texts, nothing written

16 requests with 512 to 8192 keys and one query each, 32 heads of 128 over 8 key heads, pages of 16 keys in random
order, as many threads as cores. Before they are timed, all ways must give the same bits. What memory itself takes for
pages is in the same rounds: PyTorch's sum of all pages (``embedding_bag``), one behind another and in random order.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from marked import cases, rewritten, times
from torch import Tensor
from torch.nn.functional import embedding_bag, pad

import dynattn
from dynattn.lab.machine import machine
from dynattn.lab.records import write_json
from dynattn.lab.timing import interleaved
from dynattn.methods import Method, parse

RECORD = Path(__file__).parent / "results" / "paged.json"
PAGE = Path(__file__).parent.parent / "docs" / "varlen.md"
START, END = "<!-- written by benchmarks/paged.py -->", "<!-- end of pages -->"
REQUESTS, FEWEST, MOST = 16, 512, 8192
HEADS, KV_HEADS, HEAD_DIM, PAGE_KEYS = 32, 8, 128, 16
DTYPES = (torch.float32, torch.bfloat16)
METHODS = ("dense", "nm-1-2", "nm-2-4")
BASELINE = "one after another"
SECONDS = 3.0


def lengths(requests: int, fewest: int, most: int) -> list[int]:
    """The keys of each request: evenly between the fewest and the most, in random order."""
    sizes = torch.linspace(fewest, most, requests).long()
    return sizes[torch.randperm(requests, generator=torch.Generator().manual_seed(0))].tolist()


def in_pages(x: Tensor, sizes: list[int]) -> tuple[Tensor, Tensor]:
    """The keys of ``x`` in a pool of pages in random order, and the table that finds them."""
    counts = [-(-size // PAGE_KEYS) for size in sizes]
    order = torch.randperm(sum(counts), generator=torch.Generator().manual_seed(1))
    pool, table = x.new_zeros(sum(counts), PAGE_KEYS, *x.shape[1:]), torch.zeros(len(sizes), max(counts)).int()
    for row, text, own in zip(table, x.split(sizes), order.split(counts), strict=True):
        row[: len(own)] = own
        pool[own] = pad(text, (0, 0, 0, 0, 0, len(own) * PAGE_KEYS - len(text))).unflatten(0, (-1, PAGE_KEYS))
    return pool, table


def gathered(
    query: Tensor, keys: Tensor, values: Tensor, method: Method, bounds: Tensor, used: Tensor, table: Tensor
) -> Tensor:
    """Attention over pages that are copied together first."""
    cu_seq_k = pad(used.cumsum(0), (1, 0))
    rows = [row[: -(-int(count) // PAGE_KEYS)].long() for row, count in zip(table, used, strict=True)]
    key, value = (
        torch.cat([pool[row].flatten(0, 1)[:count] for row, count in zip(rows, used.tolist(), strict=True)])
        for pool in (keys, values)
    )
    return dynattn.varlen_attention(query, key, value, method, cu_seq_q=bounds, cu_seq_k=cu_seq_k, causal=True)


def summed(pools: tuple[Tensor, ...], order: Tensor) -> list[Tensor]:
    """Sums of the pages of each pool in this order, as many as there are requests: a read of all bytes, as floats."""
    starts = torch.arange(0, len(order), -(-len(order) // REQUESTS))
    return [embedding_bag(order, pool.flatten(1).view(torch.float32), starts, mode="sum") for pool in pools]


def case(method: Method, dtype: torch.dtype, sizes: list[int]) -> dict[str, Callable[[], object]]:
    """What is timed, by name.

    Raises:
        SystemExit: the ways give different bits.
    """
    query = torch.randn(len(sizes), HEADS, HEAD_DIM).to(dtype)
    key, value = (torch.randn(sum(sizes), KV_HEADS, HEAD_DIM).to(dtype) for _ in range(2))
    (keys, table), (values, _) = in_pages(key, sizes), in_pages(value, sizes)
    bounds, used = torch.arange(len(sizes) + 1), torch.tensor(sizes)
    attend = partial(dynattn.varlen_attention, query, method=method, cu_seq_q=bounds, causal=True)
    attended: dict[str, Callable[[], Tensor]] = {
        BASELINE: partial(attend, key, value, cu_seq_k=pad(used.cumsum(0), (1, 0))),
        "in pages": partial(attend, keys, values, seqused_k=used, block_table=table),
        "pages gathered": partial(gathered, query, keys, values, method, bounds, used, table),
    }
    expected = attended[BASELINE]()
    for name, function in attended.items():
        if not torch.equal(function(), expected):
            raise SystemExit(f"paged: {name} must give the bits of keys one after another: {method.name}, {dtype}")
    pages = torch.arange(len(keys))
    order = torch.randperm(len(keys), generator=torch.Generator().manual_seed(2))
    return {
        **attended,
        "a sum of the bytes, in order": partial(summed, (keys, values), pages),
        "a sum of the bytes, by page": partial(summed, (keys, values), order),
    }


def measure(sizes: list[int], seconds: float) -> list[dict[str, object]]:
    """The times of every method, in every dtype."""
    torch.set_num_threads(int(machine()["cores"]))
    torch.manual_seed(0)
    rows: list[dict[str, object]] = []
    for dtype in DTYPES:
        for method in METHODS:
            found = times(interleaved(case(parse(method), dtype, sizes), seconds=seconds), BASELINE)
            rows.append({"dtype": str(dtype).removeprefix("torch."), "method": method, "rows": found})
    return rows


def with_table(page: str) -> str:
    """The page with the table in its place.

    Raises:
        ValueError: the page has no place for it.
    """
    return rewritten(page, START, cases(json.loads(RECORD.read_text()), "{dtype}, {method}"), END, "paged")


if __name__ == "__main__":
    if sys.argv[1:] == ["table"]:
        PAGE.write_text(with_table(PAGE.read_text()))
    elif sys.argv[1:] == ["small"]:
        for row in measure(lengths(3, 20, 90), 0.05):
            print(row["dtype"], row["method"], list(row["rows"]))  # type: ignore[call-overload]
    else:
        sizes = lengths(REQUESTS, FEWEST, MOST)
        found = {"machine": machine(), "lengths": sizes, "cases": measure(sizes, SECONDS)}
        write_json(RECORD, {**found, "heads": HEADS, "kv_heads": KV_HEADS, "head_dim": HEAD_DIM, "page": PAGE_KEYS})
