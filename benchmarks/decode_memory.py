"""Steps of decoding in bfloat16 against the speed of memory: a plain read of as many bytes, and PyTorch's attention.

    python benchmarks/decode_memory.py          # two minutes on an idle machine: results/decode-memory-<machine>.json
    python benchmarks/decode_memory.py table    # the records' place in docs/kernels/cpu-ladder.md
    python benchmarks/decode_memory.py trial    # tiny shapes, on any machine; writes nothing

Keys and values are larger than the caches, and are counted whole, also where a method keeps a part of the values.
Every figure is a median of rounds in which all functions take their turn, the read among them, with its quartiles, on
one thread and on two. A function is timed only when its output agrees with float32's in the same run.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from marked import markdown, rewritten
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention as sdpa

import dynattn
from dynattn.lab.machine import describe, machine
from dynattn.lab.records import read_json, slug, write_json
from dynattn.lab.timing import interleaved
from dynattn.methods import parse

RESULTS = Path(__file__).parent / "results"
PAGE = Path(__file__).parent.parent / "docs" / "kernels" / "cpu-ladder.md"
START, END = "<!-- written by benchmarks/decode_memory.py -->", "<!-- end -->"
SECONDS = 2.0
AGREE = 0.03  # the largest difference from float32, over the largest output, from rounding and from near-ties of 1:2
METHODS = ("dense", "nm-1-2")


class Step(NamedTuple):
    """A step of decoding: query heads on key heads, queries of each, keys, and numbers of a key and of a value."""

    heads: int
    kv_heads: int
    queries: int
    keys: int
    head_dim: int


STEPS = [
    *(Step(8 * group, 8, 1, 2**21 // head_dim, head_dim) for head_dim in (64, 128) for group in (1, 3, 4, 8)),
    *(Step(8, 8, queries, 16384, 128) for queries in (2, 4, 8)),
    Step(32, 8, 2, 16384, 128),
]
TRIAL = [Step(4, 2, 1, 300, 64), Step(2, 2, 3, 100, 32)]


def functions(step: Step) -> dict[str, Callable[[], Tensor]]:
    """A read of the bytes of all keys and values, PyTorch's attention, and every method.

    Raises:
        RuntimeError: a method's output differs from that of float32 tensors by more than rounding.
    """
    generator = torch.Generator().manual_seed(0)
    sizes = ((step.heads, step.queries), (step.kv_heads, step.keys), (step.kv_heads, step.keys))
    tensors = tuple(torch.randn(1, *size, step.head_dim, generator=generator).bfloat16() for size in sizes)
    memory = torch.ones(tensors[1].nbytes * 2 // 8, dtype=torch.int64)
    found: dict[str, Callable[[], Tensor]] = {
        "read": memory.sum, "sdpa": partial(sdpa, *tensors, enable_gqa=step.heads != step.kv_heads)
    }  # fmt: skip
    for name in METHODS:
        run = partial(dynattn.attention, *tensors, method=parse(name))
        if name == "dense":  # by itself it is PyTorch's
            run = partial(run, backend="cpu")
        with torch.inference_mode():
            exact = dynattn.attention(*(x.float() for x in tensors), method=parse(name), backend="cpu")
            difference = ((run().float() - exact).abs().max() / exact.abs().max()).item()
        if not difference <= AGREE:
            raise RuntimeError(
                f"decode_memory: {name} at {step} must agree with float32: it differs by {difference:.2g}"
            )
        found[name] = run
    return found


def measure(steps: list[Step], seconds: float) -> dict[str, Any]:
    """Every step on one and on two threads."""
    rows = []
    before = torch.get_num_threads()
    for threads in (1, 2):
        torch.set_num_threads(threads)
        for step in steps:
            with torch.inference_mode():
                timings = interleaved(functions(step), seconds=seconds)
            size = 4 * step.kv_heads * step.keys * step.head_dim
            for name, timing in timings.items():
                rows.append(
                    {
                        "threads": threads, **step._asdict(), "method": name, "bytes": size,
                        "seconds": vars(timing.seconds), "share_of_read": vars(timing.speedup(timings["read"])),
                        "speedup": vars(timing.speedup(timings["sdpa"])),
                    }
                )  # fmt: skip
    torch.set_num_threads(before)
    return {"machine": machine(), "rows": rows}


def table(record: dict[str, Any]) -> str:
    """A record as Markdown, a line a step and method."""
    reads = {_key(row): row for row in record["rows"] if row["method"] == "read"}
    found: dict[tuple[str, str], dict[int, str]] = {}
    for row in record["rows"]:
        if row["method"] not in METHODS:
            continue
        step = f"{row['heads']} on {row['kv_heads']}, {row['queries']} × {row['keys']}, {row['head_dim']}"
        read = row["bytes"] / reads[_key(row)]["seconds"]["median"] / 1e9
        share, speedup = row["share_of_read"], row["speedup"]["median"]
        cell = (
            f"{1e3 * row['seconds']['median']:.1f} ms, {share['median']:.2f} ({share['q1']:.2f}–{share['q3']:.2f}) of "
            f"{read:.0f} GB/s; {speedup:.1f}×"
        )
        found.setdefault((step, row["method"]), {})[row["threads"]] = cell
    lines = [[step, f"`{method}`", *by_threads.values()] for (step, method), by_threads in found.items()]
    columns = ["heads, queries × keys, head_dim", "", "one thread", "two"]
    return f"{describe(record['machine'])}:\n\n{markdown(columns, lines)}"


def _key(row: dict[str, Any]) -> tuple[Any, ...]:
    return (row["threads"], *(row[field] for field in Step._fields))


def main(arguments: list[str]) -> None:
    if arguments == ["table"]:
        paths = sorted(RESULTS.glob("decode-memory-*.json"))
        found = [read_json(path, "run python benchmarks/decode_memory.py") for path in paths]
        PAGE.write_text(rewritten(PAGE.read_text(), START, "\n\n".join(map(table, found)), END, "decode_memory"))
        return
    if arguments == ["trial"]:
        print(table(measure(TRIAL, 0.2)))
        return
    found = machine()
    write_json(
        RESULTS / f"decode-memory-{slug(found['processor'])}-{found['cores']}-cores.json", measure(STEPS, SECONDS)
    )


if __name__ == "__main__":
    main(sys.argv[1:])
