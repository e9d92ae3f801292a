"""Times a prototype of linear layers whose inputs are kept 1:2, for many tokens, against PyTorch's own.

    python benchmarks/linear_prefill.py          # two minutes: benchmarks/results/linear-prefill.json; needs an idle
                                                 # machine and g++; goes on after a kill
    python benchmarks/linear_prefill.py table    # the table of docs/kernels/cpu-linear.md from the record
    python benchmarks/linear_prefill.py small    # few tokens, nothing written

float32, one thread. The prototype chooses, packs what is kept, and multiplies by the code of N:M attention's product
with values. PyTorch is given its weights as they are, and packed before for oneDNN. Results are checked before they are
timed.
"""

from __future__ import annotations

import ctypes
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from linear import PREPACKED, TORCH, prepacked
from marked import markdown, measure_missing, rewritten
from torch import Tensor
from torch.nn.functional import linear

from dynattn.lab.machine import describe
from dynattn.lab.timing import interleaved

HERE = Path(__file__).parent
RECORD = HERE / "results" / "linear-prefill.json"
SOURCES = HERE.parent / "src" / "dynattn" / "kernels" / "cpu"
PAGE = HERE.parent / "docs" / "kernels" / "cpu-linear.md"
START, END = "<!-- written by benchmarks/linear_prefill.py -->", "<!-- end of prefill -->"
SHAPES = ((384, 1536), (1536, 384), (576, 1536), (1536, 576))
TOKENS = (128, 512, 2048)
SECONDS = 8.0
TILE = 64
PROTOTYPE = "prototype, 1:2"


@cache
def library() -> ctypes.CDLL:
    """The prototype, compiled for this processor."""
    path = Path(tempfile.mkdtemp(prefix="dynattn-prefill-")) / "prefill.so"
    options = ["-std=c++17", "-O3", "-march=native", "-shared", "-fPIC", "-w", f"-I{SOURCES}"]
    subprocess.run(["g++", *options, str(HERE / "linear_prefill.cpp"), "-o", str(path)], check=True)
    return ctypes.CDLL(str(path))


def panels(weight: Tensor) -> Tensor:
    """A weight (out, in) as the prototype reads it, on a cache line of its own."""
    width = int(library().panel_outputs())
    outputs, inputs = weight.shape
    packed = weight.view(outputs // width, width, inputs // TILE, TILE).permute(0, 2, 3, 1).contiguous()
    if packed.data_ptr() % 64:
        raise SystemExit("linear_prefill: weights must begin on a cache line: PyTorch has put them elsewhere")
    return packed


def prototype(x: Tensor, packed: Tensor, outputs: int) -> Tensor:
    """``NM(x) Wᵀ``, 1:2 by magnitude."""
    y = x.new_empty(x.shape[0], outputs)
    pointers = (ctypes.c_void_p(t.data_ptr()) for t in (x, packed, y))
    library().prefill(*pointers, *(ctypes.c_int64(size) for size in (*x.shape, outputs)))
    return y


@torch.inference_mode()
def measure(inputs: int, outputs: int, tokens: int, seconds: float) -> dict[str, Any]:
    """A case of the record."""
    torch.manual_seed(0)
    x, weight = torch.randn(tokens, inputs), torch.randn(outputs, inputs) * inputs**-0.5
    functions: dict[str, Callable[[], Tensor]] = {
        TORCH: partial(linear, x, weight),
        PROTOTYPE: partial(prototype, x, panels(weight), outputs),
    }
    ready = prepacked(x, weight)
    if ready is not None:
        functions[PREPACKED] = ready
    pairs = x.view(tokens, -1, 2).abs()
    second = (pairs[..., 1] > pairs[..., 0]).unsqueeze(-1)
    kept = x.masked_fill(torch.cat([second, ~second], -1).view_as(x), 0)
    for name, function in functions.items():
        want = (kept if name == PROTOTYPE else x).double() @ weight.double().t()
        if not torch.allclose(function().double(), want, rtol=1e-4, atol=1e-4):
            raise SystemExit(f"linear_prefill: a way must compute its definition: {name} differs")
    timings = interleaved(functions, seconds=seconds)
    fastest = min((name for name in timings if name != PROTOTYPE), key=lambda name: timings[name].median)
    return {
        "inputs": inputs, "outputs": outputs, "tokens": tokens, "fastest_dense": fastest,
        "seconds": {name: vars(timing.seconds) for name, timing in timings.items()},
        "speedup": vars(timings[PROTOTYPE].speedup(timings[fastest])),
    }  # fmt: skip


def record(cases: list[tuple[int, int, int]], seconds: float) -> None:
    """Measure what the record lacks, and write it after each case."""
    torch.set_num_threads(1)
    known = [{"inputs": inputs, "outputs": outputs, "tokens": tokens} for inputs, outputs, tokens in cases]
    measure_missing(RECORD, ((one, partial(measure, **one, seconds=seconds)) for one in known))


def table(found: dict[str, Any]) -> str:
    """The record in Markdown."""
    names = [name for name in (TORCH, PREPACKED, PROTOTYPE) if name in found["cases"][0]["seconds"]]
    rows = []
    for row in found["cases"]:
        times = [f"{1e3 * row['seconds'][name]['median']:.2f} ms" for name in names]
        over = row["speedup"]
        ratio = f"{over['median']:.2f}× [{over['q1']:.2f}, {over['q3']:.2f}]"
        rows.append([f"{row['inputs']} → {row['outputs']}", str(row["tokens"]), *times, ratio])
    return f"{describe(found['machine'])}:\n\n{markdown(('', 'tokens', *names, 'over the faster dense'), rows)}"


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
        print(measure(128, 192, 7, 0.1))
    else:
        record([(*shape, tokens) for shape in SHAPES for tokens in TOKENS], SECONDS)
