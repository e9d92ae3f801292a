"""Measures what the methods that choose pairs keep of real attention, and how long they take.

    python benchmarks/family_pairs.py quality minilm   # smollm2, dinov2: benchmarks/results/family/pairs-minilm.json
    python benchmarks/family_pairs.py time             # benchmarks/results/family/pairs-time.json
    python benchmarks/family_pairs.py time-full        # not causal: benchmarks/results/family/pairs-time-full.json
    python benchmarks/family_pairs.py steps            # benchmarks/results/family/pairs-steps.json
    python benchmarks/family_pairs.py table            # the tables of docs/methods/*.md from the records

Shares have no floor here and blocks are not forced (``-f0``, ``-w0-s0``): what a choice alone is worth.

Quality is measured on the queries, keys and values of the dense model, in every attention layer, on the text or image
that ``dynattn inspect`` shows by default (texts of 256 tokens): each method gets the dense model's own inputs.
"""

from __future__ import annotations

import json
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from marked import rewritten
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention as sdpa

import dynattn
from dynattn import metrics
from dynattn.integrations.transformers import Call, observing, register
from dynattn.lab.inspect import from_image, from_text
from dynattn.lab.machine import machine
from dynattn.lab.models import load
from dynattn.lab.records import write_json
from dynattn.lab.timing import Timing, interleaved
from dynattn.methods import parse

RESULTS = Path(__file__).parent / "results" / "family"
DOCS = Path(__file__).parent.parent / "docs" / "methods"
MODELS = {"minilm": "MiniLM", "smollm2": "SmolLM2", "dinov2": "DINOv2"}
START, END = "<!-- written by benchmarks/family_pairs.py -->", "<!-- end -->"
TIMES = "<!-- times: written by benchmarks/family_pairs.py -->"
STEPS = "<!-- steps: written by benchmarks/family_pairs.py -->"
BASELINES = ("nm-2-4", "fixed-0.5", "random-0.5-f0")
PAGES = {
    "topk": ("topk-0.5-f0", "topk-0.25-f0", "topk-0.1-f0", "topk-64", *BASELINES),
    "threshold": ("threshold-0.001", "threshold-0.003", "threshold-0.01", "topk-0.5-f0", "topk-0.25-f0", "topk-0.1-f0"),
    "blocktopk": (
        "blocktopk-0.5-b16-w0-s0-f0", "blocktopk-0.25-b16-w0-s0-f0", "blocktopk-0.5-b64-w0-s0-f0",
        "blocktopk-0.25-b64-w0-s0-f0", "topk-0.5-f0", "topk-0.25-f0",
        *BASELINES,
    ),
    "window": ("window-64", "window-64-s4", "window-128-s4", *BASELINES),
    "random": ("random-0.5-f0", "random-0.25-f0", "fixed-0.5", "nm-2-4", "topk-0.5-f0"),
    "fixed": ("fixed-0.5", "fixed-0.25", "random-0.5-f0", "nm-2-4", "topk-0.5-f0"),
    "combinations": (
        "nm-1-2", "nm-1-2+window-64-s4", "nm-1-2&window-128-s4", "blocktopk-0.25-b16-w0-s0-f0",
        "blocktopk-0.25-b16-w0-s0-f0+window-16-s4", "topk-0.1-f0", "topk-0.1-f0+window-16-s4",
    ),
}  # fmt: skip
METHODS = tuple(dict.fromkeys(name for names in PAGES.values() for name in names))
TOKENS = 256
LENGTHS = (512, 1024, 2048, 4096)
BY_ROW = ("topk-0.5-f0", "topk-0.25-f0", "topk-0.125-f0", "threshold-0.01")
FAST = (
    "dense",
    "nm-2-4",
    "blocktopk-0.25-b64-w0-s0-f0",
    "blocktopk-0.25-b16-w0-s0-f0",
    "window-64-s4",
    *BY_ROW,
)  # timed at all lengths
TIMED = (*FAST, "fixed-0.5")
FULL = ("dense", "nm-1-2", "nm-2-4", *BY_ROW)  # timed without causality


class Look:
    """Measures every method on each call of the dense model; sums over calls."""

    def __init__(self) -> None:
        self.heads = 0
        self.sums = {name: {"kept_mass": 0.0, "density": 0.0, "output_error": 0.0} for name in METHODS}

    def __call__(self, call: Call) -> None:
        options: dict[str, Any] = {"attn_mask": call.attn_mask, "causal": call.causal, "scale": call.scale}
        tensors = (call.query, call.key, call.value)
        dense = dynattn.attention(*tensors, parse("dense"), **options)
        self.heads += call.query.shape[1]
        for name, sums in self.sums.items():
            out, aux = dynattn.attention(*tensors, parse(name), **options, return_aux=True)
            sums["kept_mass"] += float(aux.kept_mass.double().mean(-1).sum())
            sums["density"] += float(aux.density.double().sum())
            sums["output_error"] += float(metrics.relative_error(out, dense).sum())


@torch.inference_mode()
def quality(model: str) -> dict[str, Any]:
    """Means over all heads of a model."""
    pretrained = load(model)
    vision = pretrained.kind == "vision"
    subject = from_image(pretrained, None) if vision else from_text(pretrained, None, "A news article", TOKENS)
    register()
    pretrained.model.set_attn_implementation("dynattn:dense")
    look = Look()
    with observing(look):
        pretrained.model(**subject.inputs)
    means = {name: {field: total / look.heads for field, total in sums.items()} for name, sums in look.sums.items()}
    return {
        "model": pretrained.description, "subject": subject.title, "tokens": len(subject.labels), "heads": look.heads,
        "machine": machine(), "means": means,
    }  # fmt: skip


@torch.inference_mode()
def steps() -> dict[str, Any]:
    """The steps of a top-k attention whose scores are dense, each by PyTorch alone, beside whole attentions.

    One thread, in seconds of its processor time: what other processes do at the same time counts little.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 1, 4, 1024, 64)
    scores = query @ key.mT
    calls = {
        "sdpa": lambda: sdpa(query, key, value),
        "nm-1-2": lambda: dynattn.attention(query, key, value, parse("nm-1-2")),
        "topk-0.25": lambda: dynattn.attention(query, key, value, parse("topk-0.25")),
        "topk-0.25, plain PyTorch": lambda: dynattn.attention(
            query, key, value, parse("topk-0.25"), backend="reference"
        ),
        "scores": lambda: query @ key.mT,
        "the largest quarter": lambda: torch.topk(scores, 256, sorted=False),
        "stable sort": lambda: scores.sort(dim=-1, descending=True, stable=True),
    }
    taken = interleaved(calls, rounds=7, min_sample=None, clock=time.process_time)
    torch.set_num_threads(threads)
    found = {name: seconds(timing, taken["sdpa"]) for name, timing in taken.items()}
    return {"shape": "(1, 4, 1024, 64)", "threads": 1, "clock": "process time", "machine": machine(), "steps": found}


def seconds(timing: Timing, baseline: Timing) -> dict[str, Any]:
    """A timing as it is recorded."""
    ratio = timing.speedup(baseline)
    return {
        "seconds": timing.median, "speedup": ratio.median, "speedup_q1": ratio.q1, "speedup_q3": ratio.q3,
        "samples": len(timing.samples), "disturbed": timing.disturbed,
    }  # fmt: skip


@torch.inference_mode()
def timings(causal: bool, names: tuple[str, ...], more: tuple[str, ...] = ()) -> dict[str, Any]:
    """Each method against SDPA in the same run: 12 heads of length 64, float32, normal scores.

    One thread, in seconds of its processor time, as in :func:`steps`.

    Args:
        causal: forbid keys after the query.
        names: methods timed at all lengths.
        more: methods timed at the first length alone, since their memory and time leave no room for the others.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    found = {}
    for length in LENGTHS:
        query, key, value = torch.randn(3, 1, length, 12, 64).transpose(2, 3)  # as models lay them out

        def run(name: str, q: Tensor = query, k: Tensor = key, v: Tensor = value) -> Tensor:
            return dynattn.attention(q, k, v, parse(name), causal=causal)

        timed = (*names, *more) if length == LENGTHS[0] else names
        calls: dict[str, Any] = {"sdpa": lambda q=query, k=key, v=value: sdpa(q, k, v, is_causal=causal)}
        calls |= {name: lambda name=name, run=run: run(name) for name in timed}
        # Samples of 50 ms: processor time of one short call can be a tick of 4 ms off.
        taken = interleaved(calls, rounds=7, min_sample=0.05, clock=time.process_time)
        found[str(length)] = {name: seconds(timing, taken["sdpa"]) for name, timing in taken.items()}
    record = {"shape": "(1, 12, length, 64)", "threads": 1, "clock": "process time", "machine": machine()}
    torch.set_num_threads(threads)
    return record | {"lengths": found}


def saved(name: str) -> dict[str, Any]:
    """A record."""
    return json.loads((RESULTS / f"pairs-{name}.json").read_text())


def save(name: str, record: dict[str, Any]) -> None:
    """Write a record."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    write_json(RESULTS / f"pairs-{name}.json", record)


def write(page: str, start: str, text: str) -> None:
    """Put a table into a page."""
    path = DOCS / f"{page}.md"
    path.write_text(rewritten(path.read_text(), start, text, END, "family_pairs"))


def table(page: str) -> str:
    """A page's methods on every model, in Markdown: kept mass, and in brackets density and output error."""
    records = {title: saved(model) for model, title in MODELS.items() if (RESULTS / f"pairs-{model}.json").exists()}
    heads = [f"{title}, {record['tokens']} tokens" for title, record in records.items()]
    lines = [f"| method | {' | '.join(heads)} |"]
    lines.append("|" + "---|" * (1 + len(records)))
    for name in PAGES[page]:
        cells = []
        for record in records.values():
            means = record["means"][name]
            cells.append(f"{means['kept_mass']:.3f} ({means['density']:.1%}, {means['output_error']:.3f})")
        lines.append(f"| `{name}` | {' | '.join(cells)} |")
    return "\n".join(lines)


def time_table(which: str, names: tuple[str, ...]) -> str:
    """Milliseconds and speed-up over SDPA by length, in Markdown."""
    record = saved(which)
    lines = [f"| | {' | '.join(f'{length} tokens' for length in record['lengths'])} |"]
    lines.append("|" + "---|" * (1 + len(record["lengths"])))
    for name in ("sdpa", *names):
        cells = []
        for found in record["lengths"].values():
            one = found.get(name)
            cells.append(f"{one['seconds'] * 1e3:.1f} ms, {one['speedup']:.2f}×" if one else "–")
        lines.append(f"| `{name}` | {' | '.join(cells)} |")
    return "\n".join(lines)


def steps_table() -> str:
    """Milliseconds of each step, in Markdown."""
    found = saved("steps")["steps"]
    lines = ["| | ms | of SDPA |", "|---|---|---|"]
    for name, one in found.items():
        lines.append(f"| {name} | {one['seconds'] * 1e3:.1f} | {1 / one['speedup']:.2f}× |")
    return "\n".join(lines)


def main(arguments: list[str]) -> int:
    """Measure, or write the pages."""
    if arguments == ["table"]:
        for page in PAGES:
            write(page, START, table(page))
        tables = (
            ("steps", "topk", STEPS, steps_table),
            ("time", "README", START, partial(time_table, "time", TIMED)),
            ("time-full", "topk", TIMES, partial(time_table, "time-full", FULL)),
        )
        for name, page, start, text in tables:
            if (RESULTS / f"pairs-{name}.json").exists():
                write(page, start, text())
        return 0
    measures = {
        "time": partial(timings, True, FAST, ("fixed-0.5",)),
        "time-full": partial(timings, False, FULL),
        "steps": steps,
    }
    if len(arguments) == 1 and arguments[0] in measures:
        save(arguments[0], measures[arguments[0]]())
        return 0
    if len(arguments) == 2 and arguments[0] == "quality" and arguments[1] in MODELS:
        save(arguments[1], quality(arguments[1]))
        return 0
    print(__doc__)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
