"""What correcting a cheap forward of SmolLM2 costs: how much of it is accepted, and what a pass over 16 tokens takes.

    python benchmarks/sirius.py accepted      # how much of each cheap forward stays; ten minutes on one thread
    python benchmarks/sirius.py speed         # passes over one and over 16 tokens; a minute, on an idle machine
    python benchmarks/sirius.py table         # the table of docs/decode.md

``accepted`` writes its record after each way, and goes on where it stopped. Cheap forwards are not faster here than the
dense one, so that what they would have to save is what is found: with a cheap step at a share c of a dense one's time,
and a pass over 16 tokens at r, a token costs (16 · c + r) / gained.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from marked import markdown, rewritten, times
from torch import Tensor

from dynattn.integrations.transformers import register
from dynattn.kv_caches import FullCache
from dynattn.kv_caches.drafts import Corrected, Griffin, SelfDraft, Sirius
from dynattn.kv_caches.drafts.greedy import forward, logits
from dynattn.lab.calibration import statistics
from dynattn.lab.machine import describe, machine
from dynattn.lab.models import Pretrained, load
from dynattn.lab.records import write_json
from dynattn.lab.tasks.texts import wikipedia
from dynattn.lab.timing import interleaved, own_seconds
from dynattn.methods import parse
from dynattn.sparsity import WeightSparsity
from dynattn.sparsity import parse as weights

RECORD = Path(__file__).parent / "results" / "decode" / "sirius.json"
PAGE = Path(__file__).parent.parent / "docs" / "decode.md"
START, END = "<!-- written by benchmarks/sirius.py -->", "<!-- end of corrected texts -->"
PROMPT, NEW, TEXTS, KERNEL = 256, 64, 4, 16
SECONDS = 20.0
DENSITIES = {
    "attention nm-1-2": 1.0, "layers 20": 20 / 30, "neurons 0.5": (3 * 0.5 + 1) / 4, "weights wanda-0.7": 0.7,
    "weights wanda-0.5": 0.5, "weights nmweight-2-4-wanda": 0.5, "inputs nmact-8-16": 0.5,
}  # fmt: skip
"""Cheap forwards, and the share of the layers' weights that each reads. SmolLM2 has 30 layers, and MLPs have 3 in 4 of
their weights."""

Cheap = Callable[[Any], AbstractContextManager[Any]]


def way(name: str, pretrained: Pretrained, prompt: Tensor) -> Cheap:
    """A cheap forward by its name."""
    kind, _, rest = name.partition(" ")
    if kind == "attention":
        return SelfDraft(parse(rest)).of
    if kind == "layers":
        return SelfDraft(parse("dense"), int(rest)).of
    if kind == "neurons":
        return Griffin(float(rest)).of(pretrained.model, prompt)
    method = weights(rest)
    if not isinstance(method, WeightSparsity):
        return method.apply  # of activations: chosen anew for each token
    switch = method.prepared(pretrained.model, statistics(pretrained) if method.looks_at_inputs else None)
    pretrained.model.set_attn_implementation("dynattn:dense")
    return lambda _: switch()


def prompts(pretrained: Pretrained) -> list[Tensor]:
    """The beginnings of the longest articles, (1, PROMPT)."""
    return [
        pretrained.processor(text.body[: PROMPT * 20], return_tensors="pt")["input_ids"][:, :PROMPT]
        for text in wikipedia()[:TEXTS]
    ]


def accepted(pretrained: Pretrained, texts: list[Tensor], exact: bool, name: str) -> dict[str, float]:
    """How the texts came about by one way: accepted and gained tokens of a round, and the effective density."""
    rounds = []
    for prompt in texts:
        cheap = way(name, pretrained, prompt)
        rounds += Sirius(cheap, KERNEL, exact).generate(pretrained.model, prompt, NEW).rounds
    found = Corrected(torch.empty(1, 0), tuple(rounds), FullCache())
    gained = sum(one.gained for one in rounds) / len(rounds)
    return {"accepted": found.accepted, "gained": gained, "density": found.cost(DENSITIES[name])}


def measure(pretrained: Pretrained, texts: list[Tensor]) -> None:
    """Add what the record lacks, way by way."""
    found = json.loads(RECORD.read_text()) if RECORD.exists() else {}
    facts = {"model": pretrained.description, "prompt": PROMPT, "new": NEW, "texts": len(texts), "kernel": KERNEL}
    found = {"ways": {}, **found, **facts}
    pretrained.model.set_attn_implementation("dynattn:dense")
    for name in DENSITIES:
        for exact in (True, False):
            key = f"{name}, {'exact' if exact else 'plausible'}"
            if key not in found["ways"]:
                found["ways"][key] = accepted(pretrained, texts, exact, name)
                write_json(RECORD, found)
                print(key, found["ways"][key], flush=True)


@torch.inference_mode()
def speed(model: Any, prompt: Tensor) -> None:
    """Time passes over one and over KERNEL tokens behind a prompt that a cache holds."""
    torch.set_num_threads(1)
    cache = FullCache()
    forward(model, prompt, None, cache)

    def ahead(count: int) -> float:
        start = perf_counter()
        logits(model, prompt[:, :count], None, cache, count)
        seconds = perf_counter() - start
        for layer in cache.layers:
            layer.crop(-count, keep_room=True)
        return seconds

    passes = {"one": partial(ahead, 1), "kernel": partial(ahead, KERNEL)}
    found = json.loads(RECORD.read_text()) if RECORD.exists() else {"ways": {}}
    timings = interleaved(passes, seconds=SECONDS, min_sample=None, elapsed=own_seconds)
    write_json(RECORD, {**found, "machine": machine(), "time": times(timings, "kernel")})


def table() -> str:
    """The record in Markdown."""
    found = json.loads(RECORD.read_text()) if RECORD.exists() else {"ways": {}}
    ratio = found["time"]["one"]["speedup"]["median"] if "time" in found else None
    rows = [
        [
            *name.split(", "), f"{one['accepted']:.1f}", f"{one['gained']:.1f}",
            f"{one['density']:.2f}", "–" if ratio is None else f"{(one['gained'] - ratio) / KERNEL:.2f}",
        ]
        for name, one in found["ways"].items()
    ]  # fmt: skip
    if not rows:
        return "Not measured yet."
    columns = ["cheap", "accepted where", f"accepted of {KERNEL}", "gained", "effective density", "break-even"]
    said = f"{found['model']}, {found['texts']} prompts of {found['prompt']} tokens, {found['new']} new ones each."
    if ratio is not None:
        said += (
            f" A pass over {KERNEL} tokens takes {ratio:.2f} times as long as a step, on one thread of "
            f"{describe(found['machine'])}."
        )
    return f"{said}\n\n{markdown(columns, rows)}"


def main(arguments: list[str]) -> None:
    """Measure, or write the table."""
    if arguments == ["table"]:
        PAGE.write_text(rewritten(PAGE.read_text(), START, table(), END, "sirius"))
    elif arguments in (["accepted"], ["speed"]):
        register()
        pretrained = load("smollm2")
        texts = prompts(pretrained)
        pretrained.model.set_attn_implementation("dynattn:dense")
        measure(pretrained, texts) if arguments == ["accepted"] else speed(pretrained.model, texts[0])
    else:
        raise SystemExit("sirius: usage: sirius.py accepted|speed|table")


if __name__ == "__main__":
    main(sys.argv[1:])
