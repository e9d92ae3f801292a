"""Times linear layers of a few tokens of which inputs, outputs or weights are left out, against PyTorch's own.

    python benchmarks/linear.py          # a quarter of an hour: benchmarks/results/linear.json; needs an idle machine;
                                         # goes on after a kill
    python benchmarks/linear.py table    # the tables of docs/kernels/cpu-linear.md from the record
    python benchmarks/linear.py small    # small layers, nothing written

As many threads as cores. A call of a model finds the weights of its next layer in memory and not in a cache: so each
way has as many layers as take ``ROTATED`` bytes, and a sample is a pass through all of them. PyTorch is given its
weights as they are, and packed before for oneDNN; the faster of the two is what the others are held against. Before
they are timed, all ways must give what float64 gives.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from marked import known_as, markdown, measure_missing, rewritten, times
from torch import Tensor
from torch.nn.functional import linear

from dynattn.lab.machine import describe, machine
from dynattn.lab.timing import interleaved
from dynattn.ops.linear import linear_nm_weight, linear_outputs, linear_rows, pack_nm
from dynattn.sparsity import NMWeights

RECORD = Path(__file__).parent / "results" / "linear.json"
PAGE = Path(__file__).parent.parent / "docs" / "kernels" / "cpu-linear.md"
START, END = "<!-- written by benchmarks/linear.py -->", "<!-- end of linear -->"
# inputs and outputs of SmolLM2-135M's up, down, query and key layers, and of the MLP of a model of 1 billion
SHAPES = ((576, 1536), (1536, 576), (576, 576), (576, 192), (2048, 8192), (8192, 2048))
DTYPES = (torch.float32, torch.bfloat16)
TOKENS = (1, 4, 8)
DENSITIES = (1.0, 0.7, 0.5, 0.3)
PATTERNS = ((1, 2), (2, 4))
ROTATED = 192 << 20  # bytes: six times the largest cache that is common
SECONDS = 8.0
TORCH, PREPACKED = "torch", "torch, prepacked"


class Case(NamedTuple):
    """What is timed."""

    inputs: int
    outputs: int
    dtype: torch.dtype
    tokens: int


class Way(NamedTuple):
    """A layer computed in one way, as often as layers are rotated, and what it must give.

    Attributes:
        calls: one for each layer.
        want: the first layer's outputs, in float64.
        bytes: of weights that a call reads.
    """

    calls: Sequence[Callable[[], Tensor]]
    want: Tensor
    bytes: float

    def run(self) -> None:
        """All layers, one after the other."""
        for call in self.calls:
            call()


def prepacked(x: Tensor, weight: Tensor) -> Callable[[], Tensor] | None:
    """PyTorch's linear layer with a weight in oneDNN's own order; None where this build or processor has none."""
    try:
        packed = torch.ops.mkldnn._reorder_linear_weight(weight, x.shape[0])
        call = partial(torch.ops.mkldnn._linear_pointwise, x, packed, None, "none", [], "")
        call()
    except (RuntimeError, AttributeError):
        return None
    return call


def ways(case: Case, layers: int) -> Iterator[tuple[str, Way]]:
    """All that is held against each other, by name."""
    draw = torch.Generator().manual_seed(0)
    shape = (case.outputs, case.inputs)
    x = torch.randn(case.tokens, case.inputs, generator=draw).to(case.dtype)
    first = torch.randn(shape, generator=draw).mul_(case.inputs**-0.5).to(case.dtype)
    weights = [first, *(first.clone() for _ in range(layers - 1))]
    dense, exact = x.double() @ first.double().t(), first.double()
    yield TORCH, Way([partial(linear, x, weight) for weight in weights], dense, first.nbytes)
    packed = [prepacked(x, weight) for weight in weights]
    if packed[0] is not None:
        yield PREPACKED, Way([call for call in packed if call is not None], dense, first.nbytes)
    del packed
    turned = [weight.t().contiguous() for weight in weights]
    for density in DENSITIES:
        keep = torch.rand(case.tokens, case.inputs, generator=draw) < density
        calls = [partial(linear_rows, x, weight, keep=keep) for weight in turned]
        want = x.double().masked_fill(~keep, 0) @ exact.t()
        yield f"rows {density:g}", Way(calls, want, first.nbytes * keep.any(0).float().mean().item())
    for density in DENSITIES:
        keep = torch.rand(case.tokens, case.outputs, generator=draw) < density
        calls = [partial(linear_outputs, x, weight, keep=keep) for weight in weights]
        want = dense.masked_fill(~keep, 0)
        yield f"outputs {density:g}", Way(calls, want, first.nbytes * keep.any(0).float().mean().item())
    for n, m in PATTERNS:
        masked = first * NMWeights(n, m).masks({"": first})[""]
        one = pack_nm(masked, n, m)
        copies = [one, *(one.__class__(one.values.clone(), one.places.clone(), n, m, one.inputs) for _ in weights[1:])]
        yield (
            f"weights {n}:{m}",
            Way([partial(linear_nm_weight, x, copy) for copy in copies], x.double() @ masked.double().t(), one.bytes),
        )


def check(case: Case, name: str, way: Way) -> None:
    """Raise where a way is not what it should be.

    Raises:
        SystemExit: it differs.
    """
    tolerance = 1e-4 if case.dtype == torch.float32 else 3e-2
    for call in way.calls[:: max(len(way.calls) - 1, 1)]:
        if not torch.allclose(call().double(), way.want, rtol=tolerance, atol=tolerance):
            raise SystemExit(f"linear: a way must compute its definition: {name} differs for {known_as(case)}")


@torch.inference_mode()
def measure(case: Case, seconds: float, rotated: int = ROTATED) -> dict[str, Any]:
    """A case of the record."""
    layers = -(-rotated // (case.inputs * case.outputs * case.dtype.itemsize))
    found = dict(ways(case, layers))
    for name, way in found.items():
        check(case, name, way)
    functions = {name: way.run for name, way in found.items()}
    timings = interleaved(functions, seconds=seconds, min_sample=None, each=layers)
    fastest = min((name for name in (TORCH, PREPACKED) if name in timings), key=lambda name: timings[name].median)
    rows = {name: {**row, "bytes": found[name].bytes} for name, row in times(timings, fastest).items()}
    return {**known_as(case), "layers": layers, "fastest_dense": fastest, "rows": rows}


def cases() -> list[Case]:
    """All of the record."""
    return [Case(*shape, dtype, tokens) for shape in SHAPES for dtype in DTYPES for tokens in TOKENS]


def record(every: list[Case], seconds: float, rotated: int = ROTATED) -> None:
    """Measure what the record lacks, and write it after each case."""
    torch.set_num_threads(int(machine()["cores"]))
    measure_missing(RECORD, ((known_as(case), partial(measure, case, seconds, rotated)) for case in every))


def table(found: dict[str, Any]) -> str:
    """The record in Markdown: a table a dtype, a row a shape and number of tokens."""
    parts = [f"{describe(found['machine'])}:"]
    for dtype in dict.fromkeys(row["dtype"] for row in found["cases"]):
        of = [row for row in found["cases"] if row["dtype"] == dtype]
        names = list(dict.fromkeys(name for row in of for name in row["rows"]))
        columns = [dtype, "tokens", *names]
        rows = [[f"{row['inputs']} → {row['outputs']}", str(row["tokens"]), *(_cell(row, name) for name in names)]
                for row in of]  # fmt: skip
        parts.append(markdown(columns, rows))
    return "\n\n".join(parts)


def _cell(row: dict[str, Any], name: str) -> str:
    """``120 µs, 14 GB/s, 1.52×``: time, the weights that were read over it, and the faster of PyTorch's over it."""
    if name not in row["rows"]:
        return "–"
    its = row["rows"][name]
    seconds = its["seconds"]["median"]
    over = "" if name == row["fastest_dense"] else f", {its['speedup']['median']:.2f}×"
    return f"{1e6 * seconds:.0f} µs, {its['bytes'] / seconds / 1e9:.0f} GB/s{over}"


def with_table(page: str) -> str:
    """The page with the tables in their place.

    Raises:
        ValueError: the page has no place for them.
    """
    return rewritten(page, START, table(json.loads(RECORD.read_text())), END, "linear")


if __name__ == "__main__":
    if sys.argv[1:] == ["table"]:
        PAGE.write_text(with_table(PAGE.read_text()))
    elif sys.argv[1:] == ["small"]:
        for each in DTYPES:
            print(measure(Case(96, 130, each, 2), 0.1, 1 << 20))
    else:
        record(cases(), SECONDS)
