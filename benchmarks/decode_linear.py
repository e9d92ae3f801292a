"""Decoding SmolLM2 with linear layers that leave inputs or weights out: tokens a second, and what it loses.

    python benchmarks/decode_linear.py          # half an hour, on an idle machine; goes on after a kill
    python benchmarks/decode_linear.py small    # one case of a few tokens, nothing written; two minutes
    python benchmarks/decode_linear.py table    # the tables of docs/decode.md from the record

As many threads as cores. PyTorch's own is SDPA over Transformers' default cache; everything else decodes over a cache
in place, dense or with a method in all linear layers. Thresholds, and what weights are scored by, are of Wikipedia
articles; the loss is one of held-out literature, code and protocols (``held_out.py``): prompts are read densely, and
the tokens behind them are scored by each way, a few at a time. Ways are timed in alternation after one prompt.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import held_out
import numpy as np
import torch
from marked import known_as, markdown, measure_missing, rewritten, times
from torch import Tensor

from dynattn.lab.calibration import short_articles
from dynattn.lab.decode import ways
from dynattn.lab.decode.prompt import read, step_seconds, tell
from dynattn.lab.figures import Interval
from dynattn.lab.machine import describe, machine
from dynattn.lab.models import Pretrained, load
from dynattn.lab.statistics import interval
from dynattn.lab.timing import interleaved, own_seconds
from dynattn.lab.tune.decoding import IN_PLACE
from dynattn.lab.tune.linears.steps import Linears
from dynattn.lab.tune.linears.units import of_kinds, units
from dynattn.sparsity import CHESS, parse

RECORD = Path(__file__).parent / "results" / "decode" / "linear.json"
PAGE = Path(__file__).parent.parent / "docs" / "decode.md"
START, END = "<!-- written by benchmarks/decode_linear.py -->", "<!-- end of linear layers -->"
MODEL = "smollm2"
METHODS = ("teal-0.75", "teal-0.6", "teal-0.5", "chess-0.7", "chess-0.5", "wina-0.5", "nmweight-2-4-wanda")
NAMES = (ways.BASELINE, IN_PLACE, *METHODS)
CALIBRATED = 16  # articles
TEXTS = 3  # of each kind of held-out texts
AFTER, STEPS = 128, 16  # tokens that are scored and that are timed behind a prompt
SECONDS = 60.0
CHARACTERS = 8  # of a token, more than any of these texts has

Context = Callable[[], AbstractContextManager[Any]]


class Case(NamedTuple):
    """What is measured.

    Attributes:
        kind: ``speed`` or ``loss``.
        dtype: of the weights.
        tokens: of the prompt.
    """

    kind: str
    dtype: torch.dtype
    tokens: int


CASES = tuple(
    Case(kind, dtype, tokens)
    for dtype in (torch.float32, torch.bfloat16)
    for tokens in (256, 2048)
    for kind in ("speed", "loss")
)


@cache
def loaded(dtype: torch.dtype) -> tuple[Pretrained, dict[str, Context]]:
    """The model, and by each name what has its linear layers work so."""
    pretrained = load(MODEL, str(dtype).removeprefix("torch."))
    linears = Linears(pretrained, [one["input_ids"] for one in short_articles(pretrained, CALIBRATED)])
    found: dict[str, Context] = {ways.BASELINE: nullcontext, IN_PLACE: nullcontext}
    for name in METHODS:
        chosen = ("down", "out") if isinstance(parse(name), CHESS) else ()
        found[name] = linears.context(of_kinds(units(pretrained.model), name, *chosen))
    return pretrained, found


def texts(pretrained: Pretrained, tokens: int) -> Iterator[tuple[str, Tensor]]:
    """Held-out texts of exactly so many tokens, (1, tokens), with their kinds."""
    for kind in held_out.KINDS:
        for text in held_out.texts(kind, CHARACTERS * tokens)[:TEXTS]:
            ids = pretrained.processor(text.body[: CHARACTERS * tokens], return_tensors="pt")["input_ids"]
            if ids.shape[1] >= tokens:
                yield kind, ids[:, :tokens]


def way(name: str) -> ways.Way:
    """How a name attends and what its cache is."""
    return ways.find(name if name in (ways.BASELINE, IN_PLACE) else IN_PLACE)


@torch.inference_mode()
def measure(case: Case, seconds: float) -> dict[str, Any]:
    """A case of the record."""
    pretrained, contexts = loaded(case.dtype)
    found = speed(pretrained, contexts, case.tokens, seconds) if case.kind == "speed" else lost(
        pretrained, contexts, case.tokens)  # fmt: skip
    return {**known_as(case), **found}


def speed(pretrained: Pretrained, contexts: dict[str, Context], tokens: int, seconds: float) -> dict[str, Any]:
    """Seconds of a step after a prompt, by each way in alternation."""
    model, (_, ids) = pretrained.model, next(texts(pretrained, tokens + STEPS))
    prompt, after = read(model, ids[:, :tokens]), ids[:, tokens:]

    def step(name: str) -> float:
        with contexts[name]():
            return step_seconds(model, prompt, way(name), after)

    functions = {name: partial(step, name) for name in NAMES}
    timings = interleaved(functions, seconds=seconds, min_sample=None, each=STEPS, elapsed=own_seconds)
    return {"rows": times(timings, ways.BASELINE)}


def lost(pretrained: Pretrained, contexts: dict[str, Context], tokens: int) -> dict[str, Any]:
    """Nats a token of what follows prompts, by the default, and the difference of each way, paired by text."""
    nats: dict[str, list[float]] = {name: [] for name in NAMES}
    kinds = []
    for kind, ids in texts(pretrained, tokens + 1 + AFTER):
        prompt = read(pretrained.model, ids[:, :tokens])
        for name in NAMES:
            with contexts[name]():
                told = tell(pretrained.model, prompt, way(name), ids[:, tokens:-1])
            nats[name].append(torch.nn.functional.cross_entropy(told.float(), ids[0, tokens + 1 :]).item())
        kinds.append(kind)
        print(kind, {name: round(its[-1], 3) for name, its in nats.items()}, flush=True)
    dense = np.array(nats[ways.BASELINE])
    rows = {name: interval(np.array(its) - dense).model_dump() for name, its in nats.items() if name != ways.BASELINE}
    return {"texts": kinds, "dense": float(dense.mean()), "rows": rows}


def record(cases: Sequence[Case], seconds: float) -> None:
    """Measure what the record lacks, and write it after each case."""
    torch.set_num_threads(int(machine()["cores"]))
    facts = {"sources": held_out.sources(), "calibrated_on": f"{CALIBRATED} Wikipedia articles", "scored": AFTER}
    measure_missing(RECORD, ((known_as(case), partial(measure, case, seconds)) for case in cases), **facts)


def table() -> str:
    """The record in Markdown: a table for each length of prompts."""
    if not RECORD.exists():
        return "Not measured yet."
    found = json.loads(RECORD.read_text())
    parts = [
        f"{describe(found['machine'])}; thresholds and scores of weights from {found['calibrated_on']}. The loss is "
        f"that of perplexity, over {found['scored']} tokens of each held-out text, with 95% intervals over texts:"
    ]
    for tokens in sorted({case["tokens"] for case in found["cases"]}):
        of = {(case["dtype"], case["kind"]): case for case in found["cases"] if case["tokens"] == tokens}
        dtypes = list(dict.fromkeys(dtype for dtype, _ in of))
        columns = [f"after {tokens} tokens"]
        columns += [f"{dtype}: {what}" for dtype in dtypes for what in ("tokens/s", "over PyTorch's own", "loss")]
        rows = [[f"`{name}`", *(cell for dtype in dtypes for cell in _cells(of, dtype, name))] for name in NAMES]
        parts.append(markdown(columns, rows))
    return "\n\n".join(parts)


def _cells(of: dict[tuple[str, str], dict[str, Any]], dtype: str, name: str) -> tuple[str, str, str]:
    """Tokens a second, the speed-up, and the loss of perplexity."""
    timed, scored = of.get((dtype, "speed")), of.get((dtype, "loss"))
    its = None if timed is None else timed["rows"][name]
    pace = "–" if its is None else f"{1 / its['seconds']['median']:.1f}"
    over = "–" if its is None else "1" if name == ways.BASELINE else "{median:.2f} [{q1:.2f}, {q3:.2f}]".format(
        **its["speedup"])  # fmt: skip
    if scored is None or name == ways.BASELINE:
        return pace, over, "–" if scored is None else f"{scored['dense']:.3f} nats"
    return pace, over, _loss(Interval(**scored["rows"][name]))


def _loss(found: Interval) -> str:
    """``+0.41% [+0.2%, +0.6%]`` of a difference in nats."""
    bounds = "" if found.low is None or found.high is None else f" [{_share(found.low)}, {_share(found.high)}]"
    return f"{_share(found.mean)}{bounds}"


def _share(nats: float) -> str:
    return f"{math.expm1(nats):+.2%}"


if __name__ == "__main__":
    if sys.argv[1:] == ["table"]:
        PAGE.write_text(rewritten(PAGE.read_text(), START, table(), END, "decode_linear"))
    elif sys.argv[1:] == ["small"]:
        CALIBRATED, TEXTS, AFTER = 2, 1, 32
        for each in ("speed", "loss"):
            print(measure(Case(each, torch.float32, 64), 0.1))
    elif not sys.argv[1:]:
        record(CASES, SECONDS)
    else:
        raise SystemExit("decode_linear: usage: decode_linear.py [small|table]")
