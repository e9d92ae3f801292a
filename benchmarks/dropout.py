"""Times what dropout costs in training: forward and backward with and without it, in N:M attention and PyTorch's.

    python benchmarks/dropout.py          # half a minute: benchmarks/results/dropout.json; needs an idle machine
    python benchmarks/dropout.py table    # the table of docs/training.md from the record

float32, gradients of query, key and value, as many threads as cores. With dropout PyTorch has no fused kernel on the
CPU: it computes attention in steps.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from marked import markdown, rewritten, time, times
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention as sdpa

import dynattn
from dynattn.lab.machine import describe, machine
from dynattn.lab.records import write_json
from dynattn.lab.timing import interleaved
from dynattn.methods import parse

RECORD = Path(__file__).parent / "results" / "dropout.json"
PAGE = Path(__file__).parent.parent / "docs" / "training.md"
START, END = "<!-- written by benchmarks/dropout.py -->", "<!-- end -->"
SHAPES = ((24, 1024, 64), (12, 2048, 64))  # heads, length, head_dim
RATE = 0.1
METHODS = ("nm-1-2", "nm-2-4", "dense")
BASELINE = "sdpa"
SECONDS = 6.0


def step(attend: Callable[..., Tensor], tensors: tuple[Tensor, ...], **options: Any) -> None:
    """Forward and backward."""
    for x in tensors:
        x.grad = None
    attend(*tensors, **options).sum().backward()


def measure() -> None:
    """Time every function at every shape, against PyTorch's without dropout."""
    torch.set_num_threads(int(machine()["cores"]))
    shapes = []
    for heads, length, head_dim in SHAPES:
        tensors = tuple(torch.randn(1, heads, length, head_dim, requires_grad=True) for _ in range(3))
        functions: dict[str, Callable[[], None]] = {}
        for rate in (0.0, RATE):
            functions[f"{BASELINE} {rate:g}"] = partial(step, sdpa, tensors, dropout_p=rate)
            for name in METHODS:
                run = partial(dynattn.attention, method=parse(name), dropout_p=rate)
                functions[f"{name} {rate:g}"] = partial(step, run, tensors)
        timings = interleaved(functions, seconds=SECONDS)
        shapes.append({"shape": [heads, length, head_dim], "rows": times(timings, f"{BASELINE} 0")})
    write_json(RECORD, {"machine": machine(), "rate": RATE, "shapes": shapes})


def with_table(page: str) -> str:
    """The page with the table in its place.

    Raises:
        ValueError: the page has no place for it.
    """
    found = json.loads(RECORD.read_text())
    columns, rows = ["", "dropout"], []
    columns += ["×".join(map(str, at["shape"])) for at in found["shapes"]]
    for name in found["shapes"][0]["rows"]:
        method, rate = name.split(" ")
        cells = [time(at["rows"][name]) for at in found["shapes"]]
        rows.append([f"`{method}`", "–" if rate == "0" else rate, *cells])
    return rewritten(page, START, f"{describe(found['machine'])}:\n\n{markdown(columns, rows)}", END, "dropout")


if __name__ == "__main__":
    if sys.argv[1:] == ["table"]:
        PAGE.write_text(with_table(PAGE.read_text()))
    else:
        measure()
