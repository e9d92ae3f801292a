"""Times attention of texts of different lengths: packed, against PyTorch's on the padded batch with a mask.

    python benchmarks/varlen.py          # half a minute: benchmarks/results/varlen.json; needs an idle machine
    python benchmarks/varlen.py table    # the table of docs/varlen.md from the record

32 texts of 16 to 512 tokens, 12 heads, as many threads as cores. Before it is timed, dense attention on the packed
texts is held against PyTorch's on the padded batch.
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
from torch.nn.functional import pad
from torch.nn.functional import scaled_dot_product_attention as sdpa
from torch.nn.utils.rnn import pad_sequence

import dynattn
from dynattn.lab.machine import machine
from dynattn.lab.records import write_json
from dynattn.lab.timing import interleaved
from dynattn.methods import parse

RECORD = Path(__file__).parent / "results" / "varlen.json"
PAGE = Path(__file__).parent.parent / "docs" / "varlen.md"
START, END = "<!-- written by benchmarks/varlen.py -->", "<!-- end -->"
TEXTS, SHORTEST, LONGEST, HEADS = 32, 16, 512, 12
HEAD_DIMS = (32, 64)
DTYPES = (torch.float32, torch.bfloat16)
METHODS = ("dense", "nm-1-2", "nm-2-4")
BASELINE = "sdpa, padded"
SECONDS = 3.0


def lengths(seed: int = 0) -> list[int]:
    """The lengths of the texts, uniform between the shortest and the longest."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(SHORTEST, LONGEST + 1, (TEXTS,), generator=generator).tolist()


def case(head_dim: int, dtype: torch.dtype, sizes: list[int]) -> dict[str, Callable[[], Tensor]]:
    """What is timed, by name; each gives the packed output."""
    packed = [torch.randn(sum(sizes), HEADS, head_dim).to(dtype) for _ in range(3)]
    bounds = pad(torch.tensor(sizes).cumsum(0), (1, 0))
    query, key, value = (pad_sequence(list(x.split(sizes)), batch_first=True).transpose(1, 2) for x in packed)
    inside = torch.arange(max(sizes)) < torch.tensor(sizes)[:, None]
    mask = inside[:, None, None]
    functions: dict[str, Callable[[], Tensor]] = {BASELINE: partial(sdpa, query, key, value, mask)}
    for name in METHODS:
        functions[name] = partial(dynattn.varlen_attention, *packed, parse(name), cu_seq_q=bounds)
    error = (functions[BASELINE]().transpose(1, 2)[inside].double() - functions["dense"]().double()).abs().max().item()
    limit = 1e-5 if dtype == torch.float32 else 2e-2
    if error > limit:
        raise SystemExit(f"varlen: dense attention on packed texts must be SDPA's: off by {error:.1e} in {dtype}")
    return functions


def measure() -> None:
    """Time every method, in every dtype and head_dim."""
    torch.set_num_threads(int(machine()["cores"]))
    torch.manual_seed(0)
    sizes, rows = lengths(), []
    for dtype in DTYPES:
        for head_dim in HEAD_DIMS:
            timings = interleaved(case(head_dim, dtype, sizes), seconds=SECONDS)
            found = times(timings, BASELINE)
            rows.append({"dtype": str(dtype).removeprefix("torch."), "head_dim": head_dim, "rows": found})
    write_json(RECORD, {"machine": machine(), "lengths": sizes, "heads": HEADS, "cases": rows})


def with_table(page: str) -> str:
    """The page with the table in its place.

    Raises:
        ValueError: the page has no place for it.
    """
    return rewritten(page, START, cases(json.loads(RECORD.read_text()), "{dtype}, head_dim {head_dim}"), END, "varlen")


if __name__ == "__main__":
    if sys.argv[1:] == ["table"]:
        PAGE.write_text(with_table(PAGE.read_text()))
    else:
        measure()
