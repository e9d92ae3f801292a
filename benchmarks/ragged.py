"""Times a step over a cache whose key heads hold different numbers of tokens, as Ada-SnapKV leaves it.

    python benchmarks/ragged.py          # two minutes: benchmarks/results/ragged.json; needs an idle machine
    python benchmarks/ragged.py table    # the table of docs/decode.md from the record
    python benchmarks/ragged.py small    # a short cache, nothing written

One layer, as many threads as cores, random keys and values. Heads hold from a quarter of the mean to seven quarters.
The four ways: the kernel that reads no empty slot; attention over all slots of the longest head with a mask; PyTorch's
attention head by head, over each head's own keys; and heads of equal lengths, with as many tokens in all, which is
SnapKV's cache and the least that can be asked for. Before they are timed, the first three must agree.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from marked import cases as in_columns
from marked import known_as, measure_missing, rewritten, times
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from dynattn.integrations.transformers import register
from dynattn.kv_caches.by_head import HeadLayer
from dynattn.lab.machine import machine
from dynattn.lab.timing import interleaved, own_seconds

RECORD = Path(__file__).parent / "results" / "ragged.json"
PAGE = Path(__file__).parent.parent / "docs" / "decode.md"
START, END = "<!-- written by benchmarks/ragged.py -->", "<!-- end of ragged heads -->"
SHAPES = ((9, 3, 64), (32, 8, 128))  # heads, kv_heads and head_dim of SmolLM2-135M and of Llama 3 8B
MEANS = (1024, 4096)  # tokens a key head, on average
DTYPES = (torch.float32, torch.bfloat16)
STEPS = 8
SECONDS = 8.0
KERNEL, MASK, LOOP, EQUAL = "kernel", "mask over the longest", "head by head", "equal lengths"


class Case(NamedTuple):
    """What is decoded."""

    heads: int
    kv_heads: int
    head_dim: int
    mean: int
    dtype: torch.dtype

    def lengths(self, equal: bool) -> list[int]:
        """How many tokens each key head holds."""
        shares = torch.linspace(1.0 if equal else 0.25, 1.0 if equal else 1.75, self.kv_heads)
        return (shares * self.mean).long().tolist()

    def tokens(self, count: int) -> tuple[Tensor, Tensor]:
        """Keys and values."""
        shape = (1, self.kv_heads, count, self.head_dim)
        return torch.randn(shape).to(self.dtype), torch.randn(shape).to(self.dtype)


class Module(nn.Module):
    """What an attention module of a decoder tells."""

    layer_idx, is_causal = 0, True


def cut(case: Case, equal: bool) -> HeadLayer:
    """A layer whose heads hold so many tokens."""
    lengths = case.lengths(equal)
    layer = HeadLayer(64)
    layer.groups = case.heads // case.kv_heads
    layer.update(*case.tokens(2 * case.mean))
    at = torch.arange(2 * case.mean)
    layer.evict_ragged(torch.stack([at < length for length in lengths])[None])
    return layer


def attended(layer: HeadLayer, case: Case, query: Tensor, key: Tensor, value: Tensor, masked: bool) -> Tensor:
    """A step as a model makes it."""
    if masked:
        layer.attend = lambda call: None  # type: ignore[method-assign]
    keys, values = layer.update(key, value)
    call = ALL_ATTENTION_FUNCTIONS["dynattn:dense"]
    return call(Module().eval(), query, keys, values, None, scaling=case.head_dim**-0.5)[0].transpose(1, 2)


def by_head(layer: HeadLayer, case: Case, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """PyTorch's attention, a call for each key head."""
    keys, values = layer.update(key, value)
    parts = []
    for head, own in enumerate(query.split(layer.groups, 1)):
        first = int((layer.positions[0, head] < 0).sum())
        k, v = (x[:, head : head + 1, first:] for x in (keys, values))
        parts.append(scaled_dot_product_attention(own, k, v, scale=case.head_dim**-0.5, enable_gqa=True))
    return torch.cat(parts, 1)


def ways(case: Case) -> dict[str, tuple[bool, Callable[..., Tensor]]]:
    """By name: whether heads are equally long, and a step."""
    return {
        MASK: (False, partial(attended, masked=True)), KERNEL: (False, partial(attended, masked=False)),
        LOOP: (False, by_head), EQUAL: (True, partial(attended, masked=False)),
    }  # fmt: skip


@torch.inference_mode()
def steps(case: Case, equal: bool, step: Callable[..., Tensor], tokens: list[tuple[Tensor, ...]]) -> float:
    """Seconds of the steps, without making the cache."""
    layer = cut(case, equal)
    start = time.perf_counter()
    for each in tokens:
        step(layer, case, *each)
    return time.perf_counter() - start


@torch.inference_mode()
def check(case: Case, tokens: tuple[Tensor, ...]) -> None:
    """Raise where two ways over ragged heads differ.

    Raises:
        SystemExit: they do.
    """
    found = {}
    for name, (equal, step) in ways(case).items():
        torch.manual_seed(0)
        if not equal:
            found[name] = step(cut(case, equal), case, *tokens).float()
    for name, out in found.items():
        if not torch.allclose(out, found[LOOP], rtol=2e-2, atol=1e-5 if case.dtype == torch.float32 else 2e-2):
            raise SystemExit(f"ragged: all ways must agree: {name} differs for {known_as(case)}")


def measure(case: Case, seconds: float) -> dict[str, Any]:
    """A case of the record."""
    torch.manual_seed(0)
    tokens = [(torch.randn(1, case.heads, 1, case.head_dim).to(case.dtype), *case.tokens(1)) for _ in range(STEPS)]
    check(case, tokens[0])
    functions = {name: partial(steps, case, *way, tokens) for name, way in ways(case).items()}
    found = interleaved(functions, seconds=seconds, min_sample=None, each=STEPS, elapsed=own_seconds)
    return {**known_as(case), "rows": times(found, MASK)}


def every() -> list[Case]:
    """All of the record."""
    return [Case(*shape, mean, dtype) for shape in SHAPES for dtype in DTYPES for mean in MEANS]


def record(cases: list[Case], seconds: float) -> None:
    """Measure what the record lacks, and write it after each case."""
    torch.set_num_threads(int(machine()["cores"]))
    measure_missing(RECORD, ((known_as(case), partial(measure, case, seconds)) for case in cases), steps=STEPS)


def table() -> str:
    """The record in Markdown, a column a case."""
    if not RECORD.exists():
        return "Not recorded yet."
    return in_columns(json.loads(RECORD.read_text()), "{heads} heads over {kv_heads}, {mean} tokens each, {dtype}")


register()
if __name__ == "__main__":
    if sys.argv[1:] == ["table"]:
        PAGE.write_text(rewritten(PAGE.read_text(), START, table(), END, "ragged"))
    elif sys.argv[1:] == ["small"]:
        for dtype in DTYPES:
            print(measure(Case(9, 3, 64, 128, dtype), 0.1))
    else:
        record(every(), SECONDS)
