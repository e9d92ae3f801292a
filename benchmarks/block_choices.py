"""Which blocks to keep: what every choice keeps and costs in quality on held-out texts, and how long it takes.

    python benchmarks/block_choices.py plan                        # what is not measured yet, and about how long it is
    python benchmarks/block_choices.py mass 2048 [METHOD ...]      # benchmarks/results/blocks/mass-2048.json
    python benchmarks/block_choices.py quality 2048 [METHOD ...]   # benchmarks/results/blocks/quality-2048.json
    python benchmarks/block_choices.py again 2048 METHOD ...       # benchmarks/results/blocks/again-2048.json
    python benchmarks/block_choices.py time 2048 [METHOD ...]      # adds to benchmarks/results/blocks/time-ISA.json
    python benchmarks/block_choices.py bfloat16 2048 [METHOD ...]  # …/time-ISA-bfloat16.json

Quality is SmolLM2's: the negative log-likelihood of literature, program code and protocol documents
(:mod:`held_out`), in blocks of 128 tokens, and of a number that is planted in literature and asked for at its end.
Mass is what a method keeps of the softmax, and by how many of the pairs: means over all heads, each method given the
dense model's own queries, keys and values. ``again`` is quality on other texts and facts: who is the fastest of many
that stay within limits on one text may owe it to this text. Times are those of one layer, a record for each instruction
set (ISA). Without names, the methods of ``METHODS`` are
measured that belong to the length. Every run goes on after a kill, method by method and text by text. One of
``quality`` or ``again`` fails where a method beats dense attention beyond chance, which would mean a wrong baseline.
:mod:`block_encoders` has MiniLM and DINOv2, and :mod:`block_tables` writes the page.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from held_out import KINDS, sources, texts
from torch.nn.functional import scaled_dot_product_attention as sdpa

import dynattn
from dynattn.integrations.transformers import Call, observing, register
from dynattn.kernels import cpu
from dynattn.lab.machine import machine
from dynattn.lab.models import Pretrained, load
from dynattn.lab.records import write_whole
from dynattn.lab.statistics import luck
from dynattn.lab.tasks.base import Inputs, Prepared, Task
from dynattn.lab.tasks.needle import Needle
from dynattn.lab.tasks.perplexity import Perplexity, prefill
from dynattn.lab.timing import interleaved
from dynattn.methods import parse

RESULTS = Path(__file__).parent / "results" / "blocks"
FACT = "fact"
TEXTS, OTHERS = 1, 2  # a text of each kind, the first or, for ``again``, the one with this index
FACTS = {2048: 2, 4096: 2, 8192: 6}  # contexts: the longer they are, the more they differ in what a method costs
BLOCK = 128  # how many tokens an item has
ALARM = 0.01  # the chance that a correct run fails
LENGTHS = (2048, 4096, 8192)
LONGEST = (
    "dense", "blockskip-4.0", "blockskip-4.0-in(blockmass-0.98-b64-similar)",
    "blockskip-5.0-in(blockmass-0.99-b64-similar)",
)  # fmt: skip
TIMED_AT_LEAST = (
    "blocktopk-0.25-b64-sampled", "blockmass-0.95-b64-sampled", "blockmass-0.98-b64-similar",
    "blockmass-0.99-b64-similar", "nm-1-2-x16-w64-s4", "blockskip-5.0", "blockskip-3.0",
    "blockskip-3.0-in(blockmass-0.98-b64-similar)", "blockskip-3.0-in(blockmass-0.99-b64-similar)",
)  # fmt: skip
"""Of the longest texts only timed: at 4096 tokens each of them is slower than the choice, or beyond the limits."""
LONGER = (
    *LONGEST, *TIMED_AT_LEAST, "blocktopk-0.25-b64", "blocktopk-0.25-b64-runs", "blocktopk-0.25-b64-lowrank",
    "blocktopk-0.25-b64-similar", "blocktopk-0.5-b64-sampled", "blockmass-0.95-b64-similar",
    "blockmass-0.95-b16-sampled", "nm-1-2-x16-w64-s4&blocktopk-0.5-b64-sampled", "blockskip-2.0", "topk-0.25",
    "window-256-s4",
)  # fmt: skip
METHODS = {
    8192: LONGEST,
    4096: LONGER,
    2048: (
        *LONGER, "blocktopk-0.25-b64-w0-s0", "blocktopk-0.25-b64-bounds", "blocktopk-0.25-b64-antidiagonal",
        "blocktopk-0.25-b16", "blocktopk-0.25-b16-sampled", "blocktopk-0.25-b16-runs", "blocktopk-0.25-b16-lowrank",
        "blocktopk-0.5-b64-similar", "blockmass-0.9-b64-sampled", "blockmass-0.95-b64-runs",
        "blockmass-0.95-b64-lowrank", "blockmass-0.9-b16-sampled", "blockmass-0.95-b16-runs", "topk-0.25-f0",
        "blockskip-6.0", "blockskip-1.0",
    ),
}  # fmt: skip
"""Methods by length: the longer the text, the longer a cell takes, and the fewer there are."""
NOT_BY_QUALITY = ("blockbound-0.9-b64", "blockbound-0.9-b16", "verticalslash-512-512-b64")
"""The first two lose what dense attention less a tenth of its weights loses at most, and keep nearly all; the third
chooses by the last tokens of a text, which a score of every token cannot judge."""
SLOW = ("nm-1-4-x16", "window-512-s4")  # timed to see where they are slower than dense attention
SAID = 4  # at least so many characters of a text are read for each token
TRIPLED = 3  # a cell of twice the length takes about so many times as long: linear layers twice, scores four times


def tasks(tokens: int, first: int = 0) -> dict[str, Task]:
    """What quality is measured by, by name; from the text with the index ``first``, and facts of its own."""
    read = {kind: texts(kind, tokens * 2 * SAID)[first:] for kind in KINDS}
    found: dict[str, Task] = {
        kind: Perplexity(items=TEXTS, tokens=tokens, block=BLOCK, texts=read[kind][:TEXTS]) for kind in KINDS
    }
    return found | {FACT: Needle(items=FACTS.get(tokens, 2), tokens=tokens, texts=read["literature"], seed=first)}


def named(kind: str, tokens: int) -> tuple[str, ...]:
    """The methods that a record of ``mass``, ``quality`` or ``time`` holds at a length."""
    names = METHODS.get(tokens, LONGEST)
    return {
        "mass": (*names[1:], *NOT_BY_QUALITY),
        "quality": names,
        "time": tuple(dict.fromkeys((*names, *TIMED_AT_LEAST, *NOT_BY_QUALITY, *SLOW))),
    }[kind]


def kept(calls: Iterable[Call], name: str) -> list[float]:
    """Kept mass and density of a method on a model's calls, means over all heads."""
    mass, density, heads = 0.0, 0.0, 0
    for call in calls:
        _, aux = dynattn.attention(
            call.query, call.key, call.value, parse(name), attn_mask=call.attn_mask, causal=call.causal,
            scale=call.scale, return_aux=True,
        )  # fmt: skip
        mass += float(aux.kept_mass.double().mean((0, 2)).sum())
        density += float(aux.density.double().mean(0).sum())
        heads += call.query.shape[1]
    return [round(mass / heads, 6), round(density / heads, 6)]


@torch.inference_mode()
def mass(tokens: int, names: Sequence[str]) -> None:
    """Kept mass and density of each method on the first text of each kind."""
    path = RESULTS / f"mass-{tokens}.json"
    record = {"methods": {}} | read(path) | {"tokens": tokens, "sources": sources()}
    note_machine(record)
    for kind in KINDS:
        missing = [name for name in names if kind not in record["methods"].setdefault(name, {})]
        calls: list[Call] = []
        for name in missing:
            start = time.perf_counter()
            calls = calls or calls_of_text(kind, tokens, record)
            record["methods"][name][kind] = kept(calls, name)
            keep(record, path, name, kind, start)


def quality(tokens: int, names: Sequence[str], again: bool = False) -> int:
    """Measure the methods that the record does not hold; 1 where one beats dense attention beyond chance."""
    path = RESULTS / f"{'again' if again else 'quality'}-{tokens}.json"
    record, pretrained, made = {"methods": {}} | read(path), load("smollm2"), tasks(tokens, OTHERS if again else 0)
    data = {task: made[task].prepare(pretrained) for task in made}
    record |= {
        "tokens": tokens, "model": pretrained.description, "sources": sources(),
        "tasks": {task: prepared.summary for task, prepared in data.items()},
    }  # fmt: skip
    note_machine(record)
    for name in names:
        known: dict[str, Any] = record["methods"].setdefault(name, {})
        for task, prepared in data.items():
            if task in known:
                continue
            start = time.perf_counter()
            known[task] = scores_of(pretrained, made[task], prepared, name)
            keep(record, path, name, task, start)
    return failed(record)


def scores_of(pretrained: Pretrained, task: Task, data: Prepared, name: str) -> list[float]:
    """A method's scores, item by item."""
    register(name)
    pretrained.model.set_attn_implementation(f"dynattn:{name}")
    outcome = task.evaluate(pretrained, data, lambda: None)
    return [round(float(score), 6) for score in np.asarray(outcome.scores)]


def failed(record: dict[str, Any], higher_is_better: bool = False) -> int:
    """1, after a line for each, where methods beat dense attention beyond chance; else 0."""
    better = beyond_chance(record, higher_is_better)
    for line in better:
        print(f"better than dense attention beyond chance, so the baseline is wrong: {line}")
    return int(bool(better))


def beyond_chance(record: dict[str, Any], higher_is_better: bool = False) -> list[str]:
    """The methods and tasks that beat dense attention by more than chance explains, in all of them together.

    By Student's t, since a few items may lie close together by chance.
    """
    scored, dense = record["methods"], record["methods"].get("dense", {})
    cells = [(name, task) for name in scored if name != "dense" for task in scored[name] if task in dense]
    found = []
    for name, task in cells:
        gain = differences(record, name, task) * (1 if higher_is_better else -1)
        if luck(gain) <= ALARM / len(cells):
            found.append(f"{name} on {task}: better by {gain.mean():.4f}")
    return found


def differences(record: dict[str, Any], name: str, task: str) -> np.ndarray:
    """A method's scores less dense attention's, item by item."""
    return np.array(record["methods"][name][task]) - np.array(record["methods"]["dense"][task])


@torch.inference_mode()
def timings(tokens: int, names: Sequence[str], dtype: torch.dtype = torch.float32) -> None:
    """Time each method against SDPA, causal, on SmolLM2's own queries, keys and values of its middle layer.

    Blocks by mass depend on the data, so that random inputs would say nothing.
    """
    path = time_record(dtype)
    record = read(path)
    known = record.setdefault("lengths", {}).setdefault(str(tokens), {})
    record |= {"layer": "the middle one", "threads": 1, "clock": "process time", "machine": machine()}
    calls: list[Call] = []
    for name in names:
        if name in known:
            continue
        start = time.perf_counter()
        calls = calls or calls_of_text("literature", tokens, record)
        known[name] = timed(calls[len(calls) // 2], name, dtype=dtype)
        keep(record, path, name, str(tokens), start)


def time_record(dtype: torch.dtype = torch.float32) -> Path:
    """Where times are kept that are taken on this processor."""
    return RESULTS / f"time-{cpu.best_isa()}{'' if dtype == torch.float32 else '-bfloat16'}.json"


def timed(call: Call, name: str, causal: bool = True, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    """Seconds of a method and of SDPA for one call, in alternation, and how many times as fast as SDPA it is.

    One thread, in seconds of its processor time: what other processes do at the same time counts little.
    """
    threads, method = torch.get_num_threads(), parse(name)
    query, key, value = (x.to(dtype) for x in (call.query, call.key, call.value))
    scale = call.scale
    torch.set_num_threads(1)
    taken = interleaved(
        {
            "sdpa": lambda: sdpa(query, key, value, is_causal=causal, scale=scale, enable_gqa=True),
            name: lambda: dynattn.attention(query, key, value, method, causal=causal, scale=scale),
        },
        rounds=5, min_sample=0.05, clock=time.process_time,
    )  # fmt: skip
    torch.set_num_threads(threads)
    speedup = taken[name].speedup(taken["sdpa"])
    return {"seconds": taken[name].median, "sdpa": taken["sdpa"].median, "speedup": speedup.median, "q1": speedup.q1,
            "q3": speedup.q3, "disturbed": taken[name].disturbed}  # fmt: skip


def calls_of_text(kind: str, tokens: int, record: dict[str, Any]) -> list[Call]:
    """The dense model's calls of attention on the first text of a kind; the record is told of the model."""
    pretrained = load("smollm2")
    ids = pretrained.processor(texts(kind, tokens * 2 * SAID)[0].body, return_tensors="pt")["input_ids"]
    record["model"] = pretrained.description
    return calls_of(pretrained, prefill(ids[:, :tokens]))


def calls_of(pretrained: Pretrained, inputs: Inputs) -> list[Call]:
    """The dense model's calls of attention in a forward."""
    calls: list[Call] = []
    register()
    pretrained.model.set_attn_implementation("dynattn:dense")
    with observing(calls.append):
        pretrained.model(**inputs)
    return calls


def read(path: Path) -> dict[str, Any]:
    """A record, empty where there is none yet."""
    return json.loads(path.read_text()) if path.exists() else {}


def note_machine(record: dict[str, Any]) -> None:
    """Write this machine into a record, and into ``earlier`` the one of another processor that began it."""
    before, now = record.get("machine"), machine()
    if before and any(before[key] != now[key] for key in ("processor", "isa")):
        record.setdefault("earlier", []).append(before)
    record["machine"] = now


def keep(record: dict[str, Any], path: Path, name: str, cell: str, start: float) -> None:
    """Write a record with a cell more, and how long that took."""
    seconds = round(time.perf_counter() - start, 1)
    record.setdefault("seconds", {}).setdefault(name, {})[cell] = seconds
    write_whole(path, written(record))
    print(f"{path.stem}: {name}, {cell}: {seconds} s", flush=True)


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


def plan() -> list[str]:
    """What is not measured yet, and about how long it takes by the cells that are: a line for each kind and length."""
    lines = []
    for kind in ("mass", "quality", "time"):
        each: float | None = None  # seconds of a cell
        for tokens in LENGTHS if kind != "mass" else LENGTHS[:1]:
            took, cells = _cells(kind, tokens)
            missing = sum(cell not in took for cell in cells)
            known = [seconds for seconds in took.values() if seconds is not None]
            each = statistics.mean(known) if known else None if each is None else each * TRIPLED
            about = "nothing is known of its time" if each is None else f"about {missing * each / 60:.0f} minutes"
            lines.append(f"{kind} {tokens}: {missing} cells missing; {about}")
    return lines


def _cells(kind: str, tokens: int) -> tuple[dict[tuple[str, str], float | None], list[tuple[str, str]]]:
    """The cells that a record holds with the seconds that they took, where it tells, and those that it is to hold."""
    record = read(time_record() if kind == "time" else RESULTS / f"{kind}-{tokens}.json")
    parts = {"mass": KINDS, "quality": (*KINDS, FACT), "time": (str(tokens),)}[kind]
    timed = record.get("lengths", {}).get(str(tokens), {})
    held = [(name, part) for name, found in record.get("methods", {}).items() for part in found]
    held += [(name, str(tokens)) for name in timed]
    seconds = record.get("seconds", {})
    took = {(name, part): seconds.get(name, {}).get(part) for name, part in held}
    return took, [(name, part) for name in named(kind, tokens) for part in parts]


def main(arguments: list[str]) -> int:
    """Measure, or say what is left to measure."""
    if arguments == ["plan"]:
        print("\n".join(plan()))
        return 0
    kinds = ("mass", "quality", "again", "time", "bfloat16")
    if len(arguments) < 2 or arguments[0] not in kinds or not arguments[1].isdigit():
        print(__doc__)
        return 2
    kind, tokens = arguments[0], int(arguments[1])
    names = arguments[2:] or named({"again": "quality", "bfloat16": "time"}.get(kind, kind), tokens)
    if kind in ("quality", "again"):
        return quality(tokens, names, again=kind == "again")
    if kind == "mass":
        mass(tokens, names)
    else:
        timings(tokens, names, torch.bfloat16 if kind == "bfloat16" else torch.float32)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
