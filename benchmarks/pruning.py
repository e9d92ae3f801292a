"""Methods that shorten the sequence, on real models: quality, tokens seen, and end-to-end time, beside dense.

    python benchmarks/pruning.py quality minilm          # 6 minutes on one idle core; dinov2 4
    python benchmarks/pruning.py speed minilm            # 2 minutes; dinov2 3
    python benchmarks/pruning_table.py                   # the tables of docs/methods/spatten.md and ltp.md

Writes benchmarks/results/pruning/<model>-quality.json and <model>-speed.json. Every quality result is written as soon
as it is there: a run that was killed goes on where it stopped. Speed is interleaved: each round runs every
configuration once, and ratios to dense are taken within rounds.

Baselines that every method must beat are among the methods: tokens by chance and the first tokens, with the schedule
that SpAtten has at the same keep ratio.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch

from dynattn.integrations.transformers import register
from dynattn.lab.figures import Quality, Record, Spread
from dynattn.lab.machine import machine
from dynattn.lab.models import Pretrained, load
from dynattn.lab.records import write_record
from dynattn.lab.scoring import evaluate
from dynattn.lab.statistics import quality
from dynattn.lab.tasks import Outcome, Prepared, Task, make
from dynattn.lab.tasks.base import Inputs
from dynattn.lab.timing import interleaved
from dynattn.pruning import Trace, parse
from dynattn.pruning.importance import received

RESULTS = Path(__file__).parent / "results" / "pruning"
DENSE = "dense"
THREADS = 1  # with one thread, another program on the machine costs a share of a core, and no waiting at barriers
_SPARSE = "dynattn:nm-1-2"


class Plan(NamedTuple):
    """The sizes of a model's run.

    Attributes:
        task: by name.
        items: of it.
        zero_pruned: whether the task averages over tokens, so that pruned ones must not count.
        methods: with dense attention inside.
        composed: those that run with N:M attention inside too.
        rounds: of the timing.
    """

    task: str
    items: int
    zero_pruned: bool
    methods: tuple[str, ...]
    composed: tuple[str, ...]
    rounds: int


PLANS = {
    "minilm": Plan(
        "retrieval", 36, True,
        (
            "spatten-0.7", "random-tokens-0.7", "first-tokens-0.7", "spatten-0.5", "random-tokens-0.5", "ltp-0.002",
            "first-tokens-0.5", "ltp-0.001", "spatten-0.25", "random-tokens-0.25", "spatten-0.5-h0.75",
        ),
        ("spatten-0.5", "ltp-0.002"), 7,
    ),
    "dinov2": Plan(
        "saliency", 8, False,
        (
            "spatten-0.7", "random-tokens-0.7", "spatten-0.5", "random-tokens-0.5", "ltp-0.0005", "ltp-0.0002",
            "first-tokens-0.5",
        ),
        ("spatten-0.7",), 5,
    ),
}  # fmt: skip


class Scored(Record):
    """One configuration's quality.

    Attributes:
        implementation: the model's attention.
        method: of pruning, or dense.
        keep_ratio: tokens seen, mean over layers and full-length samples, over the first layer's.
        tokens: share of the tokens that each layer saw, mean over full-length samples.
        quality: beside dense sdpa.
    """

    implementation: str
    method: str
    keep_ratio: float
    tokens: list[float]
    quality: Quality


class QualityRecord(Record):
    """A model's quality under each configuration."""

    schema_version: Literal[1] = 1
    model: str
    description: str
    task: str
    metric: str
    data: str
    zero_pruned: bool
    machine: dict[str, Any]
    scored: list[Scored]


class TimedPoint(Record):
    """One configuration's time: seconds of a forward, and how many times as fast as dense sdpa."""

    implementation: str
    method: str
    seconds: Spread
    speedup: Spread
    disturbed: int


class SpeedRecord(Record):
    """A model's time under each configuration; ``rounds`` interleaved samples each.

    Attributes:
        importance: seconds of one layer's attention at this length: fused, importance alone, both in one pass.
    """

    schema_version: Literal[1] = 1
    model: str
    length: int
    batch: int
    rounds: int
    machine: dict[str, Any]
    timed: list[TimedPoint]
    importance: dict[str, Spread]


def configurations(plan: Plan) -> list[tuple[str, str]]:
    """(implementation, method), dense sdpa first."""
    return [
        ("sdpa", DENSE),
        (_SPARSE, DENSE),
        *(("sdpa", m) for m in plan.methods),
        *((_SPARSE, m) for m in plan.composed),
    ]


def pruning(pretrained: Pretrained, method: str, plan: Plan) -> AbstractContextManager[Trace | None]:
    """The context that a configuration runs in."""
    if method == DENSE:
        return nullcontext()
    return parse(method).apply(pretrained.model, zero_pruned=plan.zero_pruned)


def score(
    pretrained: Pretrained, task: Task, data: Prepared, plan: Plan, implementation: str, method: str
) -> tuple[Outcome, list[float]]:
    """The task's outcome, and the share of the tokens that each layer saw."""
    shares: list[torch.Tensor] = []

    def note(forward: Any) -> None:
        full = forward.tokens[0] == data.length  # queries are short, and prune differently
        if full.any():
            shares.append((forward.tokens[:, full] / data.length).mean(1))

    with pruning(pretrained, method, plan) as trace:
        if trace is not None:
            trace.on_forward = note
        outcome = evaluate(task, data, pretrained, implementation, lambda: None)
    layers = pretrained.model.config.num_hidden_layers
    return outcome, torch.stack(shares).mean(0).tolist() if shares else [1.0] * layers


def measure_quality(name: str) -> None:
    """Score what the record lacks."""
    plan, path = PLANS[name], RESULTS / f"{name}-quality.json"
    pretrained = load(name)
    task = make(plan.task, pretrained, items=plan.items)
    data = task.prepare(pretrained)
    found = (
        QualityRecord.model_validate_json(path.read_text())
        if path.exists()
        else QualityRecord(
            model=name, description=pretrained.description, task=plan.task, metric=task.metric, data=data.summary,
            zero_pruned=plan.zero_pruned, machine=machine(), scored=[],
        )
    )  # fmt: skip
    baseline, _ = score(pretrained, task, data, plan, "sdpa", DENSE)
    done = {(point.implementation, point.method) for point in found.scored}
    for implementation, method in configurations(plan):
        if (implementation, method) in done:
            continue
        dense = (implementation, method) == ("sdpa", DENSE)
        outcome, tokens = (
            (baseline, [1.0] * pretrained.model.config.num_hidden_layers)
            if dense
            else score(pretrained, task, data, plan, implementation, method)
        )
        judged = quality(method, outcome, baseline, data, task.higher_is_better)
        found.scored.append(
            Scored(
                implementation=implementation, method=method, keep_ratio=sum(tokens) / len(tokens), tokens=tokens,
                quality=judged,
            )
        )  # fmt: skip
        write_record(found, path)
        print(f"{implementation:15} {method:20} {sum(tokens) / len(tokens):.3f} {judged.score:.4f}", flush=True)


def importance(config: Any, length: int) -> dict[str, Spread]:
    """What importance costs one layer, on random inputs of the model's shape."""
    torch.manual_seed(0)
    head_dim = config.hidden_size // config.num_attention_heads
    query, key, value = torch.randn(3, 1, config.num_attention_heads, length, head_dim)
    scale = head_dim**-0.5
    timings = interleaved(
        {
            "fused": lambda: torch.nn.functional.scaled_dot_product_attention(query, key, value),
            "importance": lambda: received(query, key, scale),
            "both": lambda: received(query, key, scale, None, value),
        },
        seconds=3.0,
    )
    spreads = {name: timing.seconds for name, timing in timings.items()}
    return {name: Spread(median=s.median, q1=s.q1, q3=s.q3) for name, s in spreads.items()}


@torch.inference_mode()
def race(pretrained: Pretrained, inputs: Inputs, plan: Plan, contenders: Sequence[tuple[str, str]]) -> list[TimedPoint]:
    """Time a forward under each (attention inside, method), interleaved, against the first of them."""

    def forward(implementation: str, method: str) -> None:
        pretrained.model.set_attn_implementation(implementation)
        with pruning(pretrained, method, plan):
            pretrained.model(**inputs)

    functions = {" ".join(pair): partial(forward, *pair) for pair in contenders}
    timings = list(interleaved(functions, rounds=plan.rounds, min_sample=None).values())
    timed = []
    for (implementation, method), timing in zip(contenders, timings, strict=True):
        seconds, speedup = timing.seconds, timing.speedup(timings[0])
        timed.append(
            TimedPoint(
                implementation=implementation, method=method, disturbed=timing.disturbed,
                seconds=Spread(median=seconds.median, q1=seconds.q1, q3=seconds.q3),
                speedup=Spread(median=speedup.median, q1=speedup.q1, q3=speedup.q3),
            )
        )  # fmt: skip
    return timed


def measure_speed(name: str) -> None:
    """Time a forward of one full-length item under each configuration."""
    plan = PLANS[name]
    pretrained = load(name)
    data = make(plan.task, pretrained, items=max(2, plan.items // 9)).prepare(pretrained)
    before = machine()
    record = SpeedRecord(
        model=name, length=data.length, batch=1, rounds=plan.rounds, machine=before,
        timed=race(pretrained, data.examples[0], plan, configurations(plan)),
        importance=importance(pretrained.model.config, data.length),
    )  # fmt: skip
    write_record(record, RESULTS / f"{name}-speed.json")


def main(arguments: list[str]) -> None:
    """Run one of the commands above."""
    if len(arguments) != 2 or arguments[0] not in ("quality", "speed") or arguments[1] not in PLANS:
        raise SystemExit(f"pruning: usage: pruning.py quality|speed {'|'.join(PLANS)}")
    register("nm-1-2")
    torch.set_num_threads(THREADS)
    command, name = arguments
    if command == "quality":
        measure_quality(name)
    else:
        measure_speed(name)


if __name__ == "__main__":
    main(sys.argv[1:])
