"""Which blocks to keep on models without a causal mask: MiniLM and DINOv2, what every choice keeps, costs and takes.

    python benchmarks/block_encoders.py minilm [METHOD ...]    # benchmarks/results/blocks/minilm.json
    python benchmarks/block_encoders.py dinov2 [METHOD ...]    # benchmarks/results/blocks/dinov2.json
    python benchmarks/block_encoders.py time minilm|dinov2     # adds the times to a record, on an idle machine

Quality is retrieval's MRR@10 on literature and protocol documents (:mod:`held_out`) with MiniLM, and the area under the
ROC curve of saliency maps with DINOv2, item by item. Mass and density are means over all heads, each method given the
dense model's own queries, keys and values. A run goes on after a kill, method by method; it fails where a method beats
dense attention beyond chance, which would mean a wrong baseline. :mod:`block_tables` writes the page.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from block_choices import calls_of, failed, keep, kept, note_machine, read, scores_of, timed
from held_out import sources, texts

from dynattn.integrations.transformers import Call
from dynattn.lab.machine import machine
from dynattn.lab.models import load
from dynattn.lab.tasks.base import Task
from dynattn.lab.tasks.retrieval import Retrieval
from dynattn.lab.tasks.saliency import Saliency

RESULTS = Path(__file__).parent / "results" / "blocks"
MODELS = {"minilm": "MiniLM", "dinov2": "DINOv2"}
METHODS = (
    "dense", "nm-1-2-x16", "topk-0.25", "blocktopk-0.25-b16", "blocktopk-0.25-b16-sampled",
    "blocktopk-0.25-b16-runs", "blocktopk-0.25-b16-lowrank", "blocktopk-0.25-b16-sampled-w0-s0",
    "clustered-blocktopk-0.25-b16-sampled-w0-s0", "blocktopk-0.5-b16-sampled", "blocktopk-0.5-b16-runs",
    "blocktopk-0.5-b16-lowrank", "blocktopk-0.5-b16-sampled-w0-s0", "clustered-blocktopk-0.5-b16-sampled-w0-s0",
    "blockmass-0.95-b16-sampled", "blockmass-0.95-b16-runs",
    "clustered-blockmass-0.95-b16-sampled-w0-s0", "blocktopk-0.25-b16-similar", "blockmass-0.98-b16-similar",
    "blockskip-2.0", "blockskip-3.0", "blockskip-4.0", "blockskip-4.0-in(blockmass-0.98-b16-similar)",
    "blockskip-3.0-in(blockmass-0.98-b16-similar)", "blockskip-3.0-in(blockmass-0.95-b16-similar)",
)  # fmt: skip
_CHARACTERS = 60_000  # of a text
_SEED = 1  # the pictures of the default, 0, have been looked at


def task(model: str) -> Task:
    """What is measured."""
    if model == "minilm":
        return Retrieval(texts=(*texts("literature", _CHARACTERS), *texts("protocols", _CHARACTERS)))
    return Saliency(seed=_SEED)


@torch.inference_mode()
def measure(model: str, names: Sequence[str]) -> int:
    """Measure what the record does not hold; 1 where a method beats dense attention beyond chance."""
    path, made = RESULTS / f"{model}.json", task(model)
    record: dict[str, Any] = {"methods": {}, "kept": {}} | read(path)
    pretrained = load(model)
    data = made.prepare(pretrained)
    record |= {
        "model": pretrained.description, "sources": sources() if model == "minilm" else {},
        "metric": made.metric, "higher_is_better": made.higher_is_better, "tasks": {made.name: data.summary},
    }  # fmt: skip
    note_machine(record)
    calls: list[Call] = []
    for name in names:
        start = time.perf_counter()
        if name not in record["kept"]:
            calls = calls or calls_of(pretrained, data.examples[0])
            record["kept"][name] = kept(calls, name)
            keep(record, path, name, "kept", start)
        start, known = time.perf_counter(), record["methods"].setdefault(name, {})
        if made.name not in known:
            known[made.name] = scores_of(pretrained, made, data, name)
            keep(record, path, name, made.name, start)
    return failed(record, made.higher_is_better)


@torch.inference_mode()
def clock(model: str) -> None:
    """Add to the record how long its methods take on the middle layer's queries, keys and values."""
    path, pretrained = RESULTS / f"{model}.json", load(model)
    record = read(path)
    calls = calls_of(pretrained, task(model).prepare(pretrained).examples[0])
    call = calls[len(calls) // 2]
    times = record.setdefault("time", {"shape": list(call.query.shape), "methods": {}})
    times["machine"] = machine()
    for name in record["kept"]:
        if name not in times["methods"]:
            start = time.perf_counter()
            times["methods"][name] = timed(call, name, causal=False)
            keep(record, path, name, "time", start)


def main(arguments: list[str]) -> int:
    """Measure quality, or time."""
    if len(arguments) == 2 and arguments[0] == "time" and arguments[1] in MODELS:
        clock(arguments[1])
        return 0
    if arguments and arguments[0] in MODELS:
        return measure(arguments[0], arguments[1:] or METHODS)
    print(__doc__)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
