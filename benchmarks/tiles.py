"""The tile kernels against PyTorch's attention in bfloat16: forward, shapes and targets of their ladder.

    python benchmarks/tiles.py            # two minutes on an idle machine: benchmarks/results/tiles-<machine>.json
    python benchmarks/tiles.py table      # the records' place in docs/kernels/cpu-tiles-ladder.md
    python benchmarks/tiles.py trial      # tiny shapes, by the portable engine, on any machine; writes nothing

Every figure is a median of rounds in which all functions take their turn, with its quartiles, on one thread and on two.
A function is timed only when its output agrees with that of the kernels for float32 in the same run.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from marked import markdown, rewritten
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention as sdpa

import dynattn
from dynattn.kernels.cpu import isas
from dynattn.lab.machine import describe, machine
from dynattn.lab.records import read_json, slug, write_json
from dynattn.lab.timing import interleaved
from dynattn.methods import parse

RESULTS = Path(__file__).parent / "results"
PAGE = Path(__file__).parent.parent / "docs" / "kernels" / "cpu-tiles-ladder.md"
START, END = "<!-- written by benchmarks/tiles.py -->", "<!-- end -->"
SECONDS = 4.0
AGREE = 0.03  # the largest difference from the float32 kernels on normal inputs, from rounding of weights and outputs
Shape = tuple[int, int, int, bool]  # heads, length, head_dim, causal
# For each shape and method, how many times as fast as SDPA the method has to be.
TARGETS: dict[Shape, dict[str, float]] = {
    (heads, length, 64, causal): {"dense": 2.0, "nm-1-2": 2.5, "nm-2-4": 2.5, "nm-1-2-x16": 2.5}
    for heads, length in ((48, 384), (24, 1024), (12, 2048), (6, 4096))
    for causal in (False, True)
}
TARGETS[12, 1024, 128, False] = {"nm-1-2": 2.0}
TARGETS[6, 8192, 64, True] = {"blocktopk-0.1-b64": 10.0}
TRIAL = {
    (2, 96, 32, False): {"dense": 0.0, "nm-1-2": 0.0, "nm-2-4": 0.0},
    (1, 130, 64, True): {"blocktopk-0.5-b16": 0.0},
}


def functions(shape: Shape, methods: list[str], backend: str) -> dict[str, Callable[[], Tensor]]:
    """PyTorch's attention and every method's, on the same tensors.

    Raises:
        RuntimeError: a method's output differs from that of the float32 kernels by more than rounding.
    """
    heads, length, head_dim, causal = shape
    generator = torch.Generator().manual_seed(0)
    tensors = tuple(torch.randn(1, heads, length, head_dim, generator=generator).bfloat16() for _ in range(3))
    found: dict[str, Callable[[], Tensor]] = {"sdpa": partial(sdpa, *tensors, is_causal=causal)}
    for name in methods:
        run = partial(dynattn.attention, *tensors, method=parse(name), causal=causal, backend=backend)
        with torch.inference_mode():
            plain = dynattn.attention(*tensors, method=parse(name), causal=causal, backend=f"cpu-{isas.best_isa()}")
            difference = (run().float() - plain.float()).abs()
        if (difference > AGREE).float().mean() > 1e-3:  # a few may differ, since near-ties may be chosen differently
            most = difference.max().item()
            raise RuntimeError(f"tiles: {name} at {shape} must agree with the definition: it differs by {most:.2g}")
        found[name] = run
    return found


def measure(targets: dict[Shape, dict[str, float]], backend: str, seconds: float) -> dict[str, Any]:
    """Every shape on one and on two threads."""
    rows = []
    before = torch.get_num_threads()
    for threads in (1, 2):
        torch.set_num_threads(threads)
        for shape, methods in targets.items():
            with torch.inference_mode():
                timings = interleaved(functions(shape, list(methods), backend), seconds=seconds)
            for name, timing in timings.items():
                rows.append(
                    {
                        "threads": threads, "shape": list(shape), "method": name, "target": methods.get(name),
                        "seconds": vars(timing.seconds), "speedup": vars(timing.speedup(timings["sdpa"])),
                    }
                )  # fmt: skip
    torch.set_num_threads(before)
    return {"machine": machine(), "engine": isas.tile_isa() or backend, "rows": rows}


def table(record: dict[str, Any]) -> str:
    """A record as Markdown: times, and how many times as fast as PyTorch's attention, a column a number of threads."""
    found: dict[tuple[str, str], dict[int, dict[str, Any]]] = {}
    for row in record["rows"]:
        heads, length, head_dim, causal = row["shape"]
        shape = f"{heads}×{length}×{head_dim}{' causal' if causal else ''}"
        found.setdefault((shape, row["method"]), {})[row["threads"]] = row
    lines = []
    for (shape, method), by_threads in found.items():
        target = by_threads[1]["target"]
        lines.append([shape, f"`{method}`", *map(_cell, by_threads.values()), f"{target:g}×" if target else ""])
    columns = ["shape", "", "one thread", "two", "target"]
    return f"{describe(record['machine'])}, engine {record['engine']}:\n\n{markdown(columns, lines)}"


def _cell(row: dict[str, Any]) -> str:
    time, speedup = f"{1e3 * row['seconds']['median']:.1f} ms", row["speedup"]
    if row["method"] == "sdpa":
        return time
    return f"{time}, {speedup['median']:.2f}× ({speedup['q1']:.2f}–{speedup['q3']:.2f})"


def main(arguments: list[str]) -> None:
    if arguments == ["table"]:
        found = [read_json(path, "run python benchmarks/tiles.py") for path in sorted(RESULTS.glob("tiles-*.json"))]
        PAGE.write_text(rewritten(PAGE.read_text(), START, "\n\n".join(map(table, found)), END, "tiles"))
        return
    if arguments == ["trial"]:
        print(table(measure(TRIAL, "cpu-tiles-portable", 0.2)))
        return
    engine = isas.tile_isa()
    if engine is None:
        raise SystemExit(f"tiles: this machine has no tile engine to measure: {isas.isa_refusal('amx')}; try 'trial'")
    found = machine()
    record = measure(TARGETS, f"cpu-{engine}", SECONDS)
    write_json(RESULTS / f"tiles-{slug(found['processor'])}-{found['cores']}-cores.json", record)


if __name__ == "__main__":
    main(sys.argv[1:])
