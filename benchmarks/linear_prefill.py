"""Times linear layers of many tokens whose inputs are kept N:M against PyTorch's own.

    python benchmarks/linear_prefill.py          # five minutes: benchmarks/results/linear-prefill.json; needs an idle
                                                 # machine; goes on after a kill
    python benchmarks/linear_prefill.py table    # the table of docs/kernels/cpu-linear.md from the record
    python benchmarks/linear_prefill.py small    # few tokens, nothing written

float32, by one thread and by as many as there are cores. Ours is ``linear_nm_act``, which chooses, and packs what it
reads, at every call. PyTorch is given its weights as they are, and packed before for oneDNN. ``rows, 1:2`` is the
product alone, with the choice made before. Results are checked before they are timed.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from linear import PREPACKED, TORCH, prepacked
from marked import markdown, measure_missing, rewritten, times
from torch import Tensor
from torch.nn.functional import linear

from dynattn.lab.machine import describe, machine
from dynattn.lab.timing import interleaved
from dynattn.ops.linear import linear_nm_act, linear_rows, nm_keep

RECORD = Path(__file__).parent / "results" / "linear-prefill.json"
PAGE = Path(__file__).parent.parent / "docs" / "kernels" / "cpu-linear.md"
START, END = "<!-- written by benchmarks/linear_prefill.py -->", "<!-- end of prefill -->"
SHAPES = ((384, 1536), (1536, 384), (576, 1536), (1536, 576), (576, 192))  # the last is SmolLM2's key layer
TOKENS = (16, 128, 512, 2048)
PATTERNS = ((1, 2), (2, 4), (4, 8), (8, 16))
SECONDS = 6.0
CHOSEN = "rows, 1:2"


def ways(x: Tensor, weight: Tensor) -> dict[str, tuple[Callable[[], Tensor], Tensor]]:
    """What is held against each other, by name, each with what it must give in float64."""
    weight_t, exact = weight.t().contiguous(), weight.double().t()
    found: dict[str, tuple[Callable[[], Tensor], Tensor]] = {TORCH: (partial(linear, x, weight), x.double() @ exact)}
    ready = prepacked(x, weight)
    if ready is not None:
        found[PREPACKED] = (ready, found[TORCH][1])
    for n, m in PATTERNS:
        groups = x.view(len(x), -1, m)
        largest = groups.abs().topk(n, dim=-1).indices
        kept = torch.zeros_like(groups).scatter(-1, largest, groups.gather(-1, largest)).view_as(x)
        found[f"{n}:{m}"] = (partial(linear_nm_act, x, weight_t, n=n, m=m), kept.double() @ exact)
    found[CHOSEN] = (partial(linear_rows, x, weight_t, keep=nm_keep(x, n=1, m=2)), found["1:2"][1])
    return found


@torch.inference_mode()
def measure(threads: int, inputs: int, outputs: int, tokens: int, seconds: float) -> dict[str, Any]:
    """A case of the record."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    found = ways(torch.randn(tokens, inputs), torch.randn(outputs, inputs) * inputs**-0.5)
    for name, (call, want) in found.items():
        if not torch.allclose(call().double(), want, rtol=1e-4, atol=1e-4):
            raise SystemExit(f"linear_prefill: a way must compute its definition: {name} differs")
    timings = interleaved({name: call for name, (call, _) in found.items()}, seconds=seconds)
    fastest = min((name for name in (TORCH, PREPACKED) if name in timings), key=lambda name: timings[name].median)
    return {
        "threads": threads, "inputs": inputs, "outputs": outputs, "tokens": tokens, "fastest_dense": fastest,
        "rows": times(timings, fastest),
    }  # fmt: skip


def record(cases: list[tuple[int, int, int, int]], seconds: float) -> None:
    """Measure what the record lacks, and write it after each case."""
    names = ("threads", "inputs", "outputs", "tokens")
    measure_missing(
        RECORD, ((dict(zip(names, case, strict=True)), partial(measure, *case, seconds)) for case in cases)
    )  # fmt: skip


def cases() -> list[tuple[int, int, int, int]]:
    """All of the record."""
    threads = dict.fromkeys((1, int(machine()["cores"])))
    return [(number, *shape, tokens) for number in threads for shape in SHAPES for tokens in TOKENS]


def table(found: dict[str, Any]) -> str:
    """The record in Markdown."""
    names = list(found["cases"][0]["rows"])
    rows = [
        [str(row["threads"]), f"{row['inputs']} → {row['outputs']}", str(row["tokens"]),
         *(_cell(row, name) for name in names)]
        for row in found["cases"]
    ]  # fmt: skip
    return f"{describe(found['machine'])}:\n\n{markdown(('threads', '', 'tokens', *names), rows)}"


def _cell(row: dict[str, Any], name: str) -> str:
    """``1.40 ms, 1.55× [1.47, 1.68]``: time, and the faster of PyTorch's over it with its quartiles."""
    its = row["rows"][name]
    time, over = f"{1e3 * its['seconds']['median']:.2f} ms", its["speedup"]
    if name in (TORCH, PREPACKED):
        return time
    return f"{time}, {over['median']:.2f}× [{over['q1']:.2f}, {over['q3']:.2f}]"


def with_table(page: str) -> str:
    """The page with the table in its place.

    Raises:
        ValueError: the page has no place for it.
    """
    return rewritten(page, START, table(json.loads(RECORD.read_text())), END, "linear_prefill")


if __name__ == "__main__":
    if sys.argv[1:] == ["table"]:
        PAGE.write_text(with_table(PAGE.read_text()))
    elif sys.argv[1:] == ["small"]:
        print(measure(1, 128, 192, 40, 0.1))
    else:
        record(cases(), SECONDS)
