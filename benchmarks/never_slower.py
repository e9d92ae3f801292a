"""``dynattn.attention`` against PyTorch's own over a grid of methods, shapes, masks and dtypes: where is it slower?

    python benchmarks/never_slower.py                 # two minutes on an idle machine: results/never-slower-*.json
    python benchmarks/never_slower.py table           # the records' place in docs/never-slower.md
    python benchmarks/never_slower.py trial [WORD …]  # one thread; workloads whose names hold a word; what is slow

PyTorch's attention and all methods of a workload take their turns in the same rounds. A figure is the median of the
ratios within rounds, with its quartiles. On one thread a time is what the thread computed, by the clock of its own, so
that a neighbour who takes the core is not counted. Where a workload is small, every output is first held against the
definition.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from marked import markdown, rewritten, times
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention as sdpa

import dynattn
from dynattn.lab.machine import describe, machine
from dynattn.lab.records import read_json, slug, write_json
from dynattn.lab.timing import LEAST_ROUNDS, Timing, interleaved
from dynattn.methods import parse

RESULTS = Path(__file__).parent / "results"
PAGE = Path(__file__).parent.parent / "docs" / "never-slower.md"
START, END = "<!-- written by benchmarks/never_slower.py -->", "<!-- end -->"
SECONDS = 0.2  # for all functions of a workload, at least three rounds
SLOW = 0.95  # of PyTorch's speed: what is below is in bold
AGREE = 0.03  # the largest difference from the definition on normal inputs, from rounding of weights and outputs
FEW = 1e-2
SMALL = 1 << 19  # pairs of query and key, up to which outputs are held against the definition, on one thread
METHODS = (
    "dense", "nm-1-2", "nm-2-4", "nm-1-2-x16-w64-s4", "window-256-s4", "blocktopk-0.25-b64",
    "blockmass-0.98-b64-similar", "blockskip-4.0", "topk-0.25", "threshold-0.001", "mass-0.95",
)  # fmt: skip
SHAPES = (
    (1, 16, 64), (1, 64, 64), (1, 128, 64), (12, 64, 64), (1, 197, 64), (1, 384, 64), (12, 197, 64), (12, 512, 64),
    (12, 1024, 64), (9, 2048, 64), (4, 1024, 128), (4, 1024, 80),
)  # fmt: skip
MASKED = ((1, 128, 64), (12, 197, 64), (12, 512, 64))
TRAINED = ((1, 128, 64), (12, 197, 64), (12, 512, 64))
DECODED = (1024, 8192)


class Workload(NamedTuple):
    """What the methods of a row are given.

    Attributes:
        heads, kv_heads, q_len, kv_len, head_dim: the sizes; the batch is 1.
        dtype: the name of a dtype of PyTorch.
        causal: forbid keys after the query.
        mask: ``""``, ``padding``, ``pairs`` (bool, a row for each query) or ``bias`` (added, a row for each query).
        training: forward and backward.
    """

    heads: int
    kv_heads: int
    q_len: int
    kv_len: int
    head_dim: int
    dtype: str
    causal: bool = False
    mask: str = ""
    training: bool = False

    @property
    def name(self) -> str:
        """``12×197×64, causal``."""
        heads = f"{self.heads}" if self.heads == self.kv_heads else f"{self.heads} on {self.kv_heads}"
        length = f"{self.q_len}" if self.q_len == self.kv_len else f"{self.q_len} on {self.kv_len}"
        extra = ("causal" * self.causal, f"{self.mask} mask" if self.mask else "", "training" * self.training)
        return ", ".join((f"{heads}×{length}×{self.head_dim}", *filter(None, extra)))


def workloads() -> list[Workload]:
    """The grid."""
    found = []
    for dtype in ("bfloat16", "float32"):
        for heads, length, head_dim in SHAPES:
            square = Workload(heads, heads, length, length, head_dim, dtype)
            found += [square, square._replace(causal=True)]
            if (heads, length, head_dim) in MASKED:
                found += [square._replace(mask=mask) for mask in ("padding", "pairs", "bias")]
            if (heads, length, head_dim) in TRAINED:
                found += [square._replace(training=True), square._replace(causal=True, training=True)]
        found += [Workload(9, 3, 1, keys, 64, dtype) for keys in DECODED]
    return found


def functions(at: Workload, methods: tuple[str, ...]) -> tuple[dict[str, Callable[[], object]], dict[str, str]]:
    """PyTorch's attention and every method's on the same tensors, and the backends that run the methods.

    Raises:
        RuntimeError: an output differs from the definition by more than rounding.
    """
    generator = torch.Generator().manual_seed(0)
    dtype = getattr(torch, at.dtype)
    sizes = ((at.heads, at.q_len), (at.kv_heads, at.kv_len), (at.kv_heads, at.kv_len))
    query, key, value = tensors = [
        torch.randn(1, heads, length, at.head_dim, generator=generator).to(dtype).requires_grad_(at.training)
        for heads, length in sizes
    ]
    mask = _mask(at, generator)
    call = partial(sdpa, *tensors, attn_mask=mask, is_causal=at.causal, enable_gqa=at.heads != at.kv_heads)
    found: dict[str, Callable[[], object]] = {"sdpa": _step(call, tensors) if at.training else call}
    backends = {}
    for name in methods:
        method = parse(name)
        options: dict[str, Any] = {"method": method, "attn_mask": mask, "causal": at.causal}
        call = partial(dynattn.attention, query, key, value, **options)
        backends[name] = str(dynattn.explain(query, key, value, **options).backend)
        if at.heads * at.q_len * at.kv_len <= SMALL and torch.get_num_threads() == 1:
            _check(at, name, call(), dynattn.attention(query, key, value, **options, backend="reference"))
        found[name] = _step(call, tensors) if at.training else call
    return found, backends


def _check(at: Workload, name: str, out: Tensor, plain: Tensor) -> None:
    difference = (out.float() - plain.float()).abs()
    if (difference > AGREE).float().mean() > FEW:  # a few may differ, since near-ties may be chosen differently
        most = difference.max().item()
        raise RuntimeError(
            f"never_slower: {name} at {at.name} must agree with the definition: it differs by {most:.2g}"
        )


def _mask(at: Workload, generator: torch.Generator) -> Tensor | None:
    if at.mask == "padding":
        return (torch.arange(at.kv_len) < at.kv_len * 3 // 4).view(1, 1, 1, -1)
    if at.mask == "pairs":
        return torch.rand(1, 1, at.q_len, at.kv_len, generator=generator) < 0.8
    if at.mask == "bias":
        return torch.randn(1, at.heads, at.q_len, at.kv_len, generator=generator).to(getattr(torch, at.dtype))
    return None


def _step(call: Callable[[], Tensor], tensors: list[Tensor]) -> Callable[[], object]:
    grad = torch.randn(call().shape, generator=torch.Generator().manual_seed(1)).to(tensors[0].dtype)
    return lambda: torch.autograd.grad(call(), tensors, grad)


def own_seconds(function: Callable[[], object], calls: int) -> float:
    """Seconds that this thread computed in ``calls`` calls."""
    start = time.thread_time()
    for _ in range(calls):
        function()
    return time.thread_time() - start


def timed(
    at: Workload, methods: tuple[str, ...], threads: int, seconds: float
) -> tuple[dict[str, Timing], dict[str, str]]:
    """The times of all functions of a workload, by name, and their backends."""
    with torch.inference_mode(not at.training):
        found, backends = functions(at, methods)
        elapsed = own_seconds if threads == 1 else None
        return interleaved(found, seconds=seconds, least=LEAST_ROUNDS, min_sample=0.004, elapsed=elapsed), backends


def measure(grid: list[Workload], methods: tuple[str, ...], seconds: float, threads: tuple[int, ...]) -> dict[str, Any]:
    """All workloads."""
    rows, before = [], torch.get_num_threads()
    for count in threads:
        torch.set_num_threads(count)
        for at in grid:
            timings, backends = timed(at, methods, count, seconds)
            rows.append({"threads": count, **at._asdict(), "backends": backends, "times": times(timings, "sdpa")})
    torch.set_num_threads(before)
    return {"machine": machine(), "rows": rows}


def table(record: dict[str, Any]) -> str:
    """A record as Markdown: how many times as fast as PyTorch's attention, for each dtype and number of threads."""
    parts = [f"{describe(record['machine'])}:"]
    for dtype in ("bfloat16", "float32"):
        for threads in sorted({row["threads"] for row in record["rows"]}):
            rows = [row for row in record["rows"] if (row["dtype"], row["threads"]) == (dtype, threads)]
            if rows:
                parts.append(f"### {dtype}, {'one thread' if threads == 1 else f'{threads} threads'}\n\n{_grid(rows)}")
    return "\n\n".join(parts)


def _grid(rows: list[dict[str, Any]]) -> str:
    methods = [name for name in rows[0]["times"] if name != "sdpa"]
    lines = []
    for row in rows:
        time = row["times"]["sdpa"]["seconds"]["median"]
        sdpa_time = f"{1e3 * time:.1f} ms" if time >= 1e-3 else f"{1e6 * time:.0f} µs"
        lines.append([_workload(row).name, sdpa_time, *(_cell(row["times"][name]["speedup"]) for name in methods)])
    below = sum("**" in cell for line in lines for cell in line)
    said = f"{below} of {len(methods) * len(lines)} below {SLOW}."
    return f"{said}\n\n{markdown(['', 'SDPA', *(f'`{name}`' for name in methods)], lines)}"


def _cell(speedup: dict[str, float]) -> str:
    text = f"{speedup['median']:.2f}"
    return f"**{text}**" if speedup["median"] < SLOW else text


def _workload(row: dict[str, Any]) -> Workload:
    return Workload(**{field: row[field] for field in Workload._fields})


def slow(record: dict[str, Any]) -> str:
    """What is below ``SLOW``, a line each."""
    return "\n".join(
        f"{row['dtype']:9} {_workload(row).name:32} {name:28} {row['backends'][name]:10} "
        f"{timing['speedup']['median']:.2f} ({timing['speedup']['q1']:.2f}–{timing['speedup']['q3']:.2f}) "
        f"{1e6 * row['times']['sdpa']['seconds']['median']:.0f} µs"
        for row in record["rows"]
        for name, timing in row["times"].items()
        if name != "sdpa" and timing["speedup"]["median"] < SLOW
    )


def main(arguments: list[str]) -> None:
    if arguments == ["table"]:
        found = [
            read_json(path, "run python benchmarks/never_slower.py") for path in sorted(RESULTS.glob("never-slower-*"))
        ]
        PAGE.write_text(rewritten(PAGE.read_text(), START, "\n\n".join(map(table, found)), END, "never_slower"))
        return
    if arguments[:1] == ["trial"]:
        words = arguments[1:]
        grid = [at for at in workloads() if not words or any(word in f"{at.dtype} {at.name}" for word in words)]
        print(slow(measure(grid, METHODS, SECONDS, (1,))))
        return
    record = {"machine": machine(), "rows": []}
    path = RESULTS / f"never-slower-{slug(record['machine']['processor'])}-{record['machine']['cores']}-cores.json"
    for threads in (1, 2):
        record["rows"] += measure(workloads(), METHODS, SECONDS, (threads,))["rows"]
        write_json(path, record)


if __name__ == "__main__":
    main(sys.argv[1:])
