"""Which blocks to keep on models without a causal mask: MiniLM and DINOv2, what every choice keeps, costs and takes.

    python benchmarks/block_encoders.py minilm [METHOD ...]    # benchmarks/results/blocks/minilm.json
    python benchmarks/block_encoders.py dinov2 [METHOD ...]    # benchmarks/results/blocks/dinov2.json
    python benchmarks/block_encoders.py time minilm|dinov2     # adds the times to a record, on an idle machine
    python benchmarks/block_encoders.py table                  # the tables of docs/dropping-blocks.md

Quality is retrieval's MRR@10 on literature and protocol documents (:mod:`held_out`) with MiniLM, and the area under the
ROC curve of saliency maps with DINOv2; each less dense attention's, paired by item, with 95% bootstrap intervals. Mass
and density are means over all heads, each method given the dense model's own queries, keys and values. A run goes on
after a kill; it fails where a method beats dense attention beyond chance, which would mean a wrong baseline.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from block_choices import END, PAGE, Look, beyond_chance, differences, timed, written
from held_out import sources, texts
from marked import difference, markdown, rewritten

from dynattn.integrations.transformers import Call, observing, register
from dynattn.lab.machine import describe, machine
from dynattn.lab.models import load
from dynattn.lab.records import write_whole
from dynattn.lab.statistics import interval
from dynattn.lab.tasks.base import Task
from dynattn.lab.tasks.retrieval import Retrieval
from dynattn.lab.tasks.saliency import Saliency

RESULTS = Path(__file__).parent / "results" / "blocks"
MODELS = {"minilm": "MiniLM", "dinov2": "DINOv2"}
METHODS = (
    "dense", "nm-1-2-x16", "topk-0.25", "blocktopk-0.25-b16", "blocktopk-0.25-b16-sampled",
    "blocktopk-0.25-b16-sampled-w0-s0", "clustered-blocktopk-0.25-b16-sampled-w0-s0", "blocktopk-0.5-b16-sampled",
    "blocktopk-0.5-b16-sampled-w0-s0", "clustered-blocktopk-0.5-b16-sampled-w0-s0", "blockmass-0.95-b16-sampled",
    "clustered-blockmass-0.95-b16-sampled-w0-s0", "blockskip-2.0", "blockskip-4.0",
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
    record: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"methods": {}, "kept": {}}
    pretrained = load(model)
    register()
    data = made.prepare(pretrained)
    record |= {
        "model": pretrained.description, "sources": sources() if model == "minilm" else {}, "machine": machine(),
        "metric": made.metric, "tasks": {made.name: data.summary},
    }  # fmt: skip
    missing = [name for name in names if name not in record["kept"]]
    if missing:
        look = Look(missing)
        pretrained.model.set_attn_implementation("dynattn:dense")
        with observing(look):
            pretrained.model(**data.examples[0])
        for name, sums in look.sums.items():
            record["kept"][name] = [round(total / look.heads, 6) for total in sums]
        write_whole(path, written(record))
    for name in names:
        known = record["methods"].setdefault(name, {})
        if made.name in known:
            continue
        register(name)
        pretrained.model.set_attn_implementation(f"dynattn:{name}")
        outcome = made.evaluate(pretrained, data, lambda: None)
        known[made.name] = [round(float(score), 6) for score in np.asarray(outcome.scores)]
        write_whole(path, written(record))
        print(f"{name}: {np.mean(known[made.name]):.4f}", flush=True)
    better = beyond_chance(record, made.higher_is_better)
    for line in better:
        print(f"better than dense attention beyond chance, so the baseline is wrong: {line}")
    return int(bool(better))


@torch.inference_mode()
def clock(model: str) -> None:
    """Add to the record how long its methods take on the middle layer's queries, keys and values."""
    path = RESULTS / f"{model}.json"
    record = json.loads(path.read_text())
    pretrained, calls = load(model), list[Call]()
    register()
    pretrained.model.set_attn_implementation("dynattn:dense")
    with observing(calls.append):
        pretrained.model(**task(model).prepare(pretrained).examples[0])
    call = calls[len(calls) // 2]
    record["time"] = {
        "shape": list(call.query.shape), "machine": machine(), "methods": timed(call, list(record["kept"]), False)
    }  # fmt: skip
    write_whole(path, written(record))


def table(model: str) -> str:
    """All figures of a model, in Markdown."""
    record = json.loads((RESULTS / f"{model}.json").read_text())
    (name,) = record["tasks"]
    rows = []
    for method, scores in record["methods"].items():
        if name not in scores:
            continue
        mass, density = record["kept"][method]
        lost = difference(interval(differences(record, method, name)))
        cells = [f"`{method}`", f"{mass:.3f} ({density:.1%})"]
        cells.append(f"{np.mean(scores[name]):.3f}" if method == "dense" else lost)
        if "time" in record:
            taken = record["time"]["methods"].get(method)
            cells.append(f"{taken['seconds'] * 1e3:.1f} ms, {taken['speedup']:.2f}×" if taken else "")
        rows.append(cells)
    heads = ["method", "kept", record["metric"], *(["time"] if "time" in record else [])]
    return f"{record['tasks'][name]}.\n\n{markdown(heads, rows)}\n\n{describe(record['machine'])}."


def tables() -> None:
    """Write the page's tables from the records that there are."""
    page = PAGE.read_text()
    for model in MODELS:
        if (RESULTS / f"{model}.json").exists():
            start = f"<!-- {model}: written by benchmarks/block_encoders.py -->"
            page = rewritten(page, start, table(model), END, "block_encoders")
    PAGE.write_text(page)


def main(arguments: list[str]) -> int:
    """Measure, or write the page."""
    if arguments == ["table"]:
        tables()
        return 0
    if len(arguments) == 2 and arguments[0] == "time" and arguments[1] in MODELS:
        clock(arguments[1])
        return 0
    if arguments and arguments[0] in MODELS:
        return measure(arguments[0], arguments[1:] or METHODS)
    print(__doc__)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
