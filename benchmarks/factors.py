"""Times linear layers written as products of factors against one dense product: does DSFormer or Monarch pay here?

    python benchmarks/factors.py          # a minute: benchmarks/results/weights/factors.json; needs an idle machine
    python benchmarks/factors.py table    # the table of docs/methods/factors.md from the record

float32, inference, one thread, at the shapes of SmolLM2's and MiniLM's layers. ``DSFormer`` is S (B x) with a basis of
half the inputs, its coefficients multiplied as if dense; ``DSFormer, ideal`` multiplies as many of them as 1:2 leaves,
as if a kernel lost nothing. ``Monarch`` is two batched products of 4 blocks with the permutation between them;
``Monarch, ideal`` leaves the permutations out. No factor is fitted to anything: only times are compared.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from marked import markdown, rewritten, times
from torch import Tensor
from torch.nn.functional import linear

from dynattn.lab.machine import describe, machine
from dynattn.lab.records import write_json
from dynattn.lab.timing import interleaved

RECORD = Path(__file__).parent / "results" / "weights" / "factors.json"
PAGE = Path(__file__).parent.parent / "docs" / "methods" / "factors.md"
START, END = "<!-- written by benchmarks/factors.py -->", "<!-- end -->"
SHAPES = ((576, 576), (576, 1536), (1536, 576), (384, 384), (384, 1536), (1536, 384))
"""Inputs and outputs."""
TOKENS = (1, 16, 256, 1024)
BLOCKS = 4
SECONDS = 2.0


def monarch(x: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """A Monarch product, arXiv:2204.00595.

    Args:
        x: (tokens, k · p).
        first: (k, q, p).
        second: (l, s, r), with l · r = k · q.

    Returns:
        (tokens, s · l).
    """
    tokens, (k, _, p), (blocks, _, r) = len(x), first.shape, second.shape
    u = torch.bmm(x.view(tokens, k, p).transpose(0, 1), first.mT)  # [k, tokens, q]
    u = u.transpose(0, 1).reshape(tokens, r, blocks).permute(2, 0, 1)  # [l, tokens, r]
    return torch.bmm(u, second.mT).permute(1, 2, 0).reshape(tokens, -1)


def of_blocks(inputs: int, outputs: int) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """The shapes of the two factors of a layer, as the source has them."""
    a, b = inputs // BLOCKS, outputs // BLOCKS
    return ((BLOCKS, a, a), (BLOCKS, b, a)) if inputs < outputs else ((BLOCKS, b, a), (BLOCKS, b, b))


def ways(inputs: int, outputs: int, tokens: int) -> dict[str, Callable[[], Tensor]]:
    """What is timed, by name."""
    draw, basis = torch.randn, inputs // 2
    x = draw(tokens, inputs)
    weight, base, whole, half = (
        draw(outputs, inputs), draw(basis, inputs), draw(outputs, basis), draw(outputs, basis // 2)
    )  # fmt: skip
    first, second = (draw(*shape) for shape in of_blocks(inputs, outputs))
    parts = x.view(tokens, BLOCKS, -1).transpose(0, 1).contiguous()
    between = draw(BLOCKS, tokens, second.shape[2])

    def ideal_dsformer() -> Tensor:
        return linear(linear(x, base)[:, : basis // 2], half)

    def ideal_monarch() -> Tensor:
        torch.bmm(parts, first.mT)
        return torch.bmm(between, second.mT)

    return {
        "dense": partial(linear, x, weight), "DSFormer": lambda: linear(linear(x, base), whole),
        "DSFormer, ideal": ideal_dsformer, "Monarch": partial(monarch, x, first, second),
        "Monarch, ideal": ideal_monarch,
    }  # fmt: skip


@torch.inference_mode()
def measure() -> None:
    """Time every way at every shape and number of tokens, against the dense product."""
    torch.set_num_threads(1)
    found = []
    for tokens in TOKENS:
        for inputs, outputs in SHAPES:
            rows = times(interleaved(ways(inputs, outputs, tokens), seconds=SECONDS), "dense")
            found.append({"inputs": inputs, "outputs": outputs, "tokens": tokens, "rows": rows})
            print(tokens, inputs, outputs, {name: round(row["speedup"]["median"], 2) for name, row in rows.items()})
    write_json(RECORD, {"machine": machine(), "blocks": BLOCKS, "cases": found})


def table() -> str:
    """The record in Markdown, a table for each number of tokens."""
    if not RECORD.exists():
        return "Not measured yet."
    found = json.loads(RECORD.read_text())
    shapes = list(dict.fromkeys(f"{case['inputs']}→{case['outputs']}" for case in found["cases"]))
    rows: dict[tuple[str, int], list[str]] = {}
    for case in found["cases"]:
        for name, row in case["rows"].items():
            if name != "dense":
                rows.setdefault((name, case["tokens"]), []).append(f"{row['speedup']['median']:.2f}×")
    lines = [[name, str(tokens), *cells] for (name, tokens), cells in sorted(rows.items())]
    return f"{describe(found['machine'])}:\n\n{markdown(['', 'tokens', *shapes], lines)}"


if __name__ == "__main__":
    if sys.argv[1:] == ["table"]:
        PAGE.write_text(rewritten(PAGE.read_text(), START, table(), END, "factors"))
    else:
        measure()
