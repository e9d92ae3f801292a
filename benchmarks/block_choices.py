"""Which blocks to keep: what every choice costs in quality on held-out texts, and how long it takes.

    python benchmarks/block_choices.py mass 2048 [METHOD ...]      # benchmarks/results/blocks/mass-2048.json
    python benchmarks/block_choices.py quality 2048 [METHOD ...]   # benchmarks/results/blocks/quality-2048.json
    python benchmarks/block_choices.py time                        # benchmarks/results/blocks/time.json
    python benchmarks/block_choices.py table                       # the tables of docs/dropping-blocks.md

Quality is SmolLM2's: the negative log-likelihood of literature, program code and protocol documents
(:mod:`held_out`), in blocks of 128 tokens, and of a number that is planted in literature and asked for at its end.
Each is less dense attention's, paired, with 95% bootstrap intervals. :mod:`block_encoders` has MiniLM and DINOv2.
Mass is what a method keeps of the softmax, and by how many of the pairs: means over all heads, each method given the
dense model's own queries, keys and values. A run of ``mass`` or ``quality`` goes on after a kill. One of ``quality``
fails where a method beats dense attention beyond chance, which would mean a wrong baseline.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from held_out import KINDS, sources, texts
from marked import difference, markdown, rewritten
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention as sdpa

import dynattn
from dynattn.integrations.transformers import Call, observing, register
from dynattn.lab.machine import describe, machine
from dynattn.lab.models import load
from dynattn.lab.records import write_whole
from dynattn.lab.statistics import interval, luck
from dynattn.lab.tasks.base import Task
from dynattn.lab.tasks.needle import Needle
from dynattn.lab.tasks.perplexity import Perplexity, prefill
from dynattn.lab.timing import interleaved
from dynattn.methods import parse

RESULTS = Path(__file__).parent / "results" / "blocks"
PAGE = Path(__file__).parent.parent / "docs" / "dropping-blocks.md"
END = "<!-- end -->"
FACT = "fact"
TEXTS, FACTS = 1, 2
BLOCK = 128  # how many tokens an item has
ALARM = 0.01  # the chance that a correct run fails
METHODS = (
    "dense", "blocktopk-0.25-b64-w0-s0", "blocktopk-0.25-b64", "blocktopk-0.25-b64-sampled",
    "blockmass-0.9-b64-sampled", "blockmass-0.95-b16-sampled", "blocktopk-0.25-b16-sampled", "topk-0.25-f0",
    "topk-0.25", "nm-1-2-x16-w64-s4", "blocktopk-0.25-b64-bounds", "blocktopk-0.25-b64-antidiagonal",
    "blockmass-0.95-b64-sampled", "blockmass-0.9-b16-sampled", "blocktopk-0.5-b64-sampled", "blocktopk-0.25-b16",
    "window-256-s4", "nm-1-2-x16-w64-s4&blocktopk-0.5-b64-sampled", "blockskip-4.0", "blockskip-5.0", "blockskip-6.0",
    "blocktopk-0.25-b64-similar",
)  # fmt: skip
NOT_BY_QUALITY = ("blockbound-0.9-b64", "blockbound-0.9-b16", "verticalslash-512-512-b64")
"""The first two lose what dense attention less a tenth of its weights loses at most, and keep nearly all; the third
chooses by the last tokens of a text, which a score of every token cannot judge."""
SLOW = ("nm-1-4-x16", "window-512-s4")  # timed to see where they are slower than dense attention
LENGTHS = (2048, 4096, 8192)
SAID = 4  # at least so many characters of a text are read for each token


def tasks(tokens: int) -> dict[str, Task]:
    """What is measured, by name."""
    read = {kind: texts(kind, tokens * 2 * SAID) for kind in KINDS}
    found: dict[str, Task] = {
        kind: Perplexity(items=TEXTS, tokens=tokens, block=BLOCK, texts=read[kind][:TEXTS]) for kind in KINDS
    }
    return found | {FACT: Needle(items=FACTS, tokens=tokens, texts=read["literature"])}


class Look:
    """Measures kept mass and density of methods on each call of the dense model, as sums over heads."""

    def __init__(self, names: Sequence[str]) -> None:
        self.heads = 0
        self.sums = {name: [0.0, 0.0] for name in names}

    def __call__(self, call: Call) -> None:
        self.heads += call.query.shape[1]
        for name, sums in self.sums.items():
            _, aux = dynattn.attention(
                call.query, call.key, call.value, parse(name), attn_mask=call.attn_mask, causal=call.causal,
                scale=call.scale, return_aux=True,
            )  # fmt: skip
            sums[0] += float(aux.kept_mass.double().mean(-1).sum())
            sums[1] += float(aux.density.double().sum())


@torch.inference_mode()
def mass(tokens: int, names: Sequence[str]) -> None:
    """Kept mass and density of each method on the first text of each kind."""
    path = RESULTS / f"mass-{tokens}.json"
    pretrained = load("smollm2")
    register()
    pretrained.model.set_attn_implementation("dynattn:dense")
    record: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"methods": {}}
    record |= {"tokens": tokens, "model": pretrained.description, "sources": sources(), "machine": machine()}
    for kind in KINDS:
        missing = [name for name in names if kind not in record["methods"].setdefault(name, {})]
        if not missing:
            continue
        ids = pretrained.processor(texts(kind, tokens * 2 * SAID)[0].body, return_tensors="pt")["input_ids"]
        look = Look(missing)
        with observing(look):
            pretrained.model(**prefill(ids[:, :tokens]))
        for name, sums in look.sums.items():
            record["methods"][name][kind] = [round(total / look.heads, 6) for total in sums]
        write_whole(path, written(record))
        print(kind, flush=True)


def quality(tokens: int, names: Sequence[str]) -> int:
    """Measure the methods that the record does not hold; 1 where one beats dense attention beyond chance."""
    path = RESULTS / f"quality-{tokens}.json"
    record: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"methods": {}}
    pretrained = load("smollm2")
    register()
    made = tasks(tokens)
    data = {task: made[task].prepare(pretrained) for task in made}
    record |= {
        "tokens": tokens, "model": pretrained.description, "sources": sources(), "machine": machine(),
        "tasks": {task: prepared.summary for task, prepared in data.items()},
    }  # fmt: skip
    for name in names:
        known: dict[str, Any] = record["methods"].setdefault(name, {})
        for task, prepared in data.items():
            if task in known:
                continue
            register(name)
            pretrained.model.set_attn_implementation(f"dynattn:{name}")
            outcome = made[task].evaluate(pretrained, prepared, lambda: None)
            known[task] = [round(float(score), 6) for score in np.asarray(outcome.scores)]
            write_whole(path, written(record))
            print(f"{name} {task}: {np.mean(known[task]):.4f}", flush=True)
    better = beyond_chance(record)
    for line in better:
        print(f"better than dense attention beyond chance, so the baseline is wrong: {line}")
    return int(bool(better))


def differences(record: dict[str, Any], name: str, task: str) -> np.ndarray:
    """A method's scores less dense attention's, item by item."""
    return np.array(record["methods"][name][task]) - np.array(record["methods"]["dense"][task])


def beyond_chance(record: dict[str, Any], higher_is_better: bool = False) -> list[str]:
    """The methods and tasks that beat dense attention by more than chance explains, in all of them together.

    By Student's t, since a few items may lie close together by chance.
    """
    cells = [(name, task) for name in record["methods"] if name != "dense" for task in record["tasks"]]
    cells = [(name, task) for name, task in cells if task in record["methods"][name]]
    found = []
    for name, task in cells:
        gain = differences(record, name, task) * (1 if higher_is_better else -1)
        if luck(gain) < ALARM / len(cells):
            found.append(f"{name} on {task}: better by {gain.mean():.4f}")
    return found


def written(record: dict[str, Any]) -> str:
    """JSON with every list of scores on a line."""
    lists: list[str] = []

    def replaced(value: Any) -> Any:
        if isinstance(value, list):
            lists.append(json.dumps(value))
            return f"@{len(lists) - 1}@"
        return {key: replaced(each) for key, each in value.items()} if isinstance(value, dict) else value

    text = json.dumps(replaced(record), indent=1, ensure_ascii=False)
    for number, line in enumerate(lists):
        text = text.replace(f'"@{number}@"', line)
    return text + "\n"


@torch.inference_mode()
def timings(names: Sequence[str]) -> dict[str, Any]:
    """Each method against SDPA in the same run, causal, on SmolLM2's own queries, keys and values of one layer.

    One thread, in seconds of its processor time: what other processes do at the same time counts little. Blocks by mass
    depend on the data, so that random inputs would say nothing.
    """
    pretrained = load("smollm2")
    register()
    pretrained.model.set_attn_implementation("dynattn:dense")
    body = texts("literature", max(LENGTHS) * 2 * SAID)[0].body
    ids = pretrained.processor(body, return_tensors="pt")["input_ids"]
    found: dict[str, Any] = {}
    for length in LENGTHS:
        calls: list[Call] = []
        with observing(calls.append):
            pretrained.model(**prefill(ids[:, :length]))
        call = calls[len(calls) // 2]
        found[str(length)] = timed(call, names)
    return {"shape": "(1, 9 over 3, length, 64)", "layer": "the middle one", "threads": 1, "clock": "process time",
            "machine": machine(), "lengths": found}  # fmt: skip


def timed(call: Call, names: Sequence[str], causal: bool = True) -> dict[str, Any]:
    """Seconds of each method for one call, and how many times as fast as SDPA it is."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    query, key, value = call.query, call.key, call.value

    def run(name: str) -> Tensor:
        return dynattn.attention(query, key, value, parse(name), causal=causal, scale=call.scale)

    runs: dict[str, Any] = {
        "sdpa": lambda: sdpa(query, key, value, is_causal=causal, scale=call.scale, enable_gqa=True)
    }
    runs |= {name: partial(run, name) for name in names}
    taken = interleaved(runs, rounds=5, min_sample=0.05, clock=time.process_time)
    torch.set_num_threads(threads)
    result = {}
    for name, timing in taken.items():
        speedup = timing.speedup(taken["sdpa"])
        result[name] = {"seconds": timing.median, "speedup": speedup.median, "q1": speedup.q1, "q3": speedup.q3,
                        "disturbed": timing.disturbed}  # fmt: skip
    return result


def mass_table(tokens: int) -> str:
    """What every method keeps, in Markdown: mass, and in brackets the share of the pairs."""
    record = json.loads((RESULTS / f"mass-{tokens}.json").read_text())
    rows = [
        [f"`{name}`", *(f"{kept:.3f} ({density:.1%})" for kept, density in (found[kind] for kind in KINDS))]
        for name, found in record["methods"].items()
    ]
    return markdown(["method", *KINDS], rows) + f"\n\n{describe(record['machine'])}."


def quality_table(tokens: int) -> str:
    """Every method's cost in quality, in Markdown."""
    record = json.loads((RESULTS / f"quality-{tokens}.json").read_text())
    dense = record["methods"]["dense"]
    done = {name: found for name, found in record["methods"].items() if found.keys() >= record["tasks"].keys()}
    rows = []
    for name in done:
        if name == "dense":
            cells = [f"{np.mean(dense[task]):.3f}" for task in record["tasks"]]
        else:
            cells = [difference(interval(differences(record, name, task))) for task in record["tasks"]]
        rows.append([f"`{name}`", *cells])
    heads = ["a planted fact" if task == FACT else task for task in record["tasks"]]
    return markdown(["method", *heads], rows) + f"\n\n{describe(record['machine'])}."


def time_table() -> str:
    """Milliseconds and speed-up over SDPA by length, in Markdown."""
    record = json.loads((RESULTS / "time.json").read_text())
    names = next(iter(record["lengths"].values()))
    rows = [
        [f"`{name}`", *(f"{one[name]['seconds'] * 1e3:.0f} ms, {one[name]['speedup']:.2f}×"
                        for one in record["lengths"].values())]
        for name in names
    ]  # fmt: skip
    heads = ["", *(f"{length} tokens" for length in record["lengths"])]
    return markdown(heads, rows) + f"\n\n{describe(record['machine'])}."


def tables() -> None:
    """Write the page's tables from the records that there are."""
    page = PAGE.read_text()
    for path in sorted([*RESULTS.glob("mass-*.json"), *RESULTS.glob("quality-*.json"), *RESULTS.glob("time.json")]):
        part = path.stem
        kind, _, tokens = part.partition("-")
        table = {"mass": mass_table, "quality": quality_table}[kind](int(tokens)) if tokens else time_table()
        page = rewritten(page, f"<!-- {part}: written by benchmarks/block_choices.py -->", table, END, "block_choices")
    PAGE.write_text(page)


def main(arguments: list[str]) -> int:
    """Measure, or write the page."""
    if arguments == ["table"]:
        tables()
        return 0
    if arguments == ["time"]:
        names = (*METHODS, *NOT_BY_QUALITY, *SLOW)
        write_whole(RESULTS / "time.json", written(timings(names)))
        return 0
    if len(arguments) >= 2 and arguments[0] == "mass" and arguments[1].isdigit():
        mass(int(arguments[1]), arguments[2:] or (*METHODS[1:], *NOT_BY_QUALITY))
        return 0
    if len(arguments) >= 2 and arguments[0] == "quality" and arguments[1].isdigit():
        return quality(int(arguments[1]), arguments[2:] or METHODS)
    print(__doc__)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
