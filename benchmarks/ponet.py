"""Times PoNet against attention, as modules with their projections, by length.

    python benchmarks/ponet.py          # a minute: benchmarks/results/ponet.json; needs an idle machine
    python benchmarks/ponet.py table    # the table of docs/methods/ponet.md from the record

float32, inference, one sequence, 384 wide with 6 heads as MiniLM is, as many threads as cores. ``attention`` is this
library's module with every pair kept, ``sdpa`` the same module with PyTorch's attention in it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from marked import cases, rewritten, times
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from dynattn.lab.machine import machine
from dynattn.lab.records import write_json
from dynattn.lab.timing import interleaved
from dynattn.methods import parse
from dynattn.nn import Attention, PoNet, equal_segments

RECORD = Path(__file__).parent / "results" / "ponet.json"
PAGE = Path(__file__).parent.parent / "docs" / "methods" / "ponet.md"
START, END = "<!-- written by benchmarks/ponet.py -->", "<!-- end -->"
WIDTH, HEADS, SEGMENTS = 384, 6, 64
LENGTHS = (512, 2048, 8192)
SECONDS = 6.0


class Dense(nn.Module):
    """The module with PyTorch's attention."""

    def __init__(self, parts: Attention) -> None:
        super().__init__()
        self.parts = parts

    def forward(self, x: Tensor) -> Tensor:
        projections = self.parts.q_proj, self.parts.k_proj, self.parts.v_proj
        q, k, v = (projection(x).unflatten(-1, (HEADS, -1)).transpose(1, 2) for projection in projections)
        return self.parts.out_proj(scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


def modules(x: Tensor) -> dict[str, Callable[[], Tensor]]:
    """What is timed, by name, on one input."""
    attention, pools = Attention(WIDTH, HEADS, method=parse("dense")).eval(), PoNet(WIDTH, HEADS).eval()
    found: dict[str, Callable[[], Tensor]] = {"sdpa": partial(Dense(attention), x), "attention": partial(attention, x)}
    for name in ("nm-1-2", "efficient"):
        module = Attention(WIDTH, HEADS, method=parse(name)).eval()
        found[name] = partial(module, x)
    return {**found, "PoNet": partial(pools, x, equal_segments(x, SEGMENTS))}


@torch.inference_mode()
def measure() -> None:
    """Time every module at every length, against PyTorch's attention."""
    torch.set_num_threads(int(machine()["cores"]))
    found = []
    for length in LENGTHS:
        timings = interleaved(modules(torch.randn(1, length, WIDTH)), seconds=SECONDS)
        found.append({"length": length, "rows": times(timings, "sdpa")})
    write_json(RECORD, {"machine": machine(), "width": WIDTH, "heads": HEADS, "segments": SEGMENTS, "cases": found})


def table() -> str:
    """The record in Markdown."""
    if not RECORD.exists():
        return "Not measured yet."
    return cases(json.loads(RECORD.read_text()), "{length} tokens")


if __name__ == "__main__":
    if sys.argv[1:] == ["table"]:
        PAGE.write_text(rewritten(PAGE.read_text(), START, table(), END, "ponet"))
    else:
        measure()
