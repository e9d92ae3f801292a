"""Times the attention of a decoding step over a whole cache: by pages that Quest chooses, against dense in place.

    python benchmarks/quest.py          # ten minutes: benchmarks/results/quest.json; needs an idle machine; goes on
                                        # after a kill
    python benchmarks/quest.py table    # the table of docs/decode.md from the record
    python benchmarks/quest.py small    # a short cache, nothing written

One layer, as many threads as cores, random keys and values. A step writes a token into the cache and attends to it by
the function that Transformers' models call: so all that Python does is in it. Before they are timed, the dense ways
must agree, and Quest must give what its definition gives.
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
from marked import known_as, markdown, measure_missing, rewritten
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

import dynattn
from dynattn import Quest
from dynattn.integrations.transformers import register
from dynattn.kv_caches import FullCache, QuestCache
from dynattn.lab.machine import describe, machine
from dynattn.lab.timing import Timing, interleaved, own_seconds

RECORD = Path(__file__).parent / "results" / "quest.json"
PAGE = Path(__file__).parent.parent / "docs" / "decode.md"
START, END = "<!-- written by benchmarks/quest.py -->", "<!-- end of pages -->"
SHAPES = ((9, 3, 64), (32, 8, 128))  # heads, kv_heads and head_dim of SmolLM2-135M and of Llama 3 8B
LENGTHS = (4096, 16384, 32768)
DTYPES = (torch.float32, torch.bfloat16)
BUDGET = 1024
STEPS = 8
SECONDS = 15.0
SDPA, DENSE, QUEST = "sdpa", "dynattn:dense", "quest"


class Case(NamedTuple):
    """What is decoded."""

    heads: int
    kv_heads: int
    head_dim: int
    length: int
    dtype: torch.dtype
    budget: int

    def tokens(self, count: int) -> tuple[Tensor, Tensor]:
        """Keys and values."""
        shape = (1, self.kv_heads, count, self.head_dim)
        return torch.randn(shape).to(self.dtype), torch.randn(shape).to(self.dtype)

    def read(self) -> float:
        """The bytes that a step by Quest reads, over those of dense attention: boxes in float32, and kept pages."""
        quest, size = Quest(self.budget), self.dtype.itemsize
        boxes = -(-self.length // quest.page) * 2 * 4
        return (boxes + (self.budget + quest.page) * 2 * size) / (self.length * 2 * size)


class Layer(nn.Module):
    """What an attention module of a decoder tells."""

    layer_idx, is_causal = 0, True

    def __init__(self, group: int) -> None:
        super().__init__()
        self.num_key_value_groups = group


class Way(NamedTuple):
    """A cache, and the attention over it."""

    implementation: str
    cache: Callable[[], Any]

    def attend(self, case: Case, query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """One call, as a model makes it."""
        module = Layer(case.heads // case.kv_heads).eval()
        scale = case.head_dim**-0.5
        return ALL_ATTENTION_FUNCTIONS[self.implementation](module, query, keys, values, None, scaling=scale)[0]


@torch.inference_mode()
def steps(way: Way, case: Case, prompt: tuple[Tensor, Tensor], tokens: list[tuple[Tensor, ...]]) -> float:
    """Seconds of all steps but the first, which makes the boxes of the prompt and is not timed."""
    cache = way.cache()
    cache.update(*prompt, 0)
    for at, (query, key, value) in enumerate(tokens):
        if at == 1:
            start = time.perf_counter()
        way.attend(case, query, *cache.update(key, value, 0))
    return time.perf_counter() - start


@torch.inference_mode()
def check(ways: dict[str, Way], case: Case, prompt: tuple[Tensor, Tensor], token: tuple[Tensor, ...]) -> None:
    """Raise where a way is not what it should be.

    Raises:
        SystemExit: a way differs.
    """
    query, key, value = token
    found, keys, values = {}, key, value
    for name, way in ways.items():
        cache = way.cache()
        cache.update(*prompt, 0)
        keys, values = cache.update(key, value, 0)
        found[name] = way.attend(case, query, keys, values).transpose(1, 2).float()
    query, keys, values = query.float(), keys.float(), values.float()
    dense = dynattn.attention(query, keys, values, dynattn.NM(1, 1))
    want = {SDPA: dense, DENSE: dense, QUEST: dynattn.attention(query, keys, values, Quest(case.budget))}
    for name, out in found.items():
        if not torch.allclose(out, want[name], rtol=2e-2, atol=1e-4 if case.dtype == torch.float32 else 2e-2):
            raise SystemExit(f"quest: a way must compute its definition: {name} differs for {known_as(case)}")


def measure(case: Case, seconds: float) -> dict[str, Any]:
    """A case of the record."""
    torch.manual_seed(0)
    ways = {
        SDPA: Way(SDPA, FullCache),
        DENSE: Way(DENSE, FullCache),
        QUEST: Way(DENSE, lambda: QuestCache(case.budget)),
    }
    prompt = case.tokens(case.length)
    tokens = [(torch.randn(1, case.heads, 1, case.head_dim).to(case.dtype), *case.tokens(1)) for _ in range(STEPS + 1)]
    check(ways, case, prompt, tokens[0])
    functions = {name: partial(steps, way, case, prompt, tokens) for name, way in ways.items()}
    found = interleaved(functions, seconds=seconds, min_sample=None, each=STEPS, elapsed=own_seconds)
    fastest = min((SDPA, DENSE), key=lambda name: found[name].median)
    return {
        **known_as(case), "read": case.read(), "rounds": len(found[QUEST].samples), "fastest_dense": fastest,
        "seconds": {name: vars(timing.seconds) for name, timing in found.items()},
        "speedup": {name: vars(_over(found, name)) for name in (SDPA, DENSE)},
    }  # fmt: skip


def _over(found: dict[str, Timing], dense: str) -> Any:
    return found[QUEST].speedup(found[dense])


def cases() -> list[Case]:
    """All of the record."""
    return [Case(*shape, length, dtype, BUDGET) for dtype in DTYPES for shape in SHAPES for length in LENGTHS]


def record(every: list[Case], seconds: float) -> None:
    """Measure what the record lacks, and write it after each case."""
    torch.set_num_threads(int(machine()["cores"]))
    measure_missing(RECORD, ((known_as(case), partial(measure, case, seconds)) for case in every), steps=STEPS)


def table(found: dict[str, Any]) -> str:
    """The record in Markdown, a row a case."""
    columns = (
        "", "keys", "SDPA, in place", "dense kernel, in place", f"Quest, {found['cases'][0]['budget']} keys",
        "over the faster dense", "of the bytes",
    )  # fmt: skip
    rows = []
    for row in found["cases"]:
        over = row["speedup"][row["fastest_dense"]]
        times = [f"{1e3 * row['seconds'][name]['median']:.2f} ms" for name in (SDPA, DENSE, QUEST)]
        rows.append([
            f"{row['heads']} heads over {row['kv_heads']}, {row['head_dim']} wide, {row['dtype']}", str(row["length"]),
            *times, f"{over['median']:.2f}× [{over['q1']:.2f}, {over['q3']:.2f}]", f"{row['read']:.1%}",
        ])  # fmt: skip
    return f"{describe(found['machine'])}:\n\n{markdown(columns, rows)}"


def with_table(page: str) -> str:
    """The page with the table in its place.

    Raises:
        ValueError: the page has no place for it.
    """
    return rewritten(page, START, table(json.loads(RECORD.read_text())), END, "quest")


register()
if __name__ == "__main__":
    if sys.argv[1:] == ["table"]:
        PAGE.write_text(with_table(PAGE.read_text()))
    elif sys.argv[1:] == ["small"]:
        for dtype in DTYPES:
            print(measure(Case(9, 3, 64, 700, dtype, 128), 0.1))
    else:
        record(cases(), SECONDS)
