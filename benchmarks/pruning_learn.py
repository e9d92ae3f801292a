"""Learn LTP's thresholds for MiniLM on passages that the quality benchmark never shows, then judge them hard.

What is learnt from is how far each passage's embedding turns from the dense model's: the task's own loss, ranking a few
passages, is near 0 from the start and says nothing.

    loss = mean over passages of 1 - cos(embedding, dense embedding) + λ · mean of the soft masks

    python benchmarks/pruning_learn.py 0.3 0.5 0.7 1    # strengths λ, each a minute on one idle core
    python benchmarks/pruning_learn.py time             # all that was learnt, beside dense; a few seconds, idle

Writes benchmarks/results/pruning/minilm-learnt.json: for each strength the way of the training, the thresholds, and
their quality and time without training the model's weights.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Sequence
from typing import Any, Literal

import torch
from pydantic import Field

from dynattn.lab.figures import Record
from dynattn.lab.finetune.pairs import Pairs
from dynattn.lab.machine import machine
from dynattn.lab.models import Pretrained, load
from dynattn.lab.records import write_record
from dynattn.lab.statistics import quality
from dynattn.lab.tasks import Retrieval, embedding
from dynattn.pruning import LTP
from dynattn.pruning.learn import learn

from pruning import DENSE, PLANS, RESULTS, THREADS, Scored, TimedPoint, race, score  # isort: skip  # beside this one

PATH, PLAN = RESULTS / "minilm-learnt.json", PLANS["minilm"]
STEPS = 20
BATCH = 4
START = LTP(0.002)
TEMPERATURE = 5e-4
RATE = 0.1


class Learning(Record):
    """One training: numbers, what it saw on the way, and what came of it."""

    strength: float
    losses: list[float]
    kept: list[float]
    scored: Scored


class LearntRecord(Record):
    """All trainings of a model's thresholds."""

    schema_version: Literal[1] = 1
    model: str
    data: str
    steps: int
    batch: int
    start: str
    temperature: float
    rate: float
    machine: dict[str, Any]
    learnt: list[Learning]
    timed: list[TimedPoint] = Field(default_factory=list)


def measure_times(pretrained: Pretrained) -> None:
    """Time dense attention and every learnt method."""
    record = LearntRecord.model_validate_json(PATH.read_text())
    data = Retrieval(items=2).prepare(pretrained)
    contenders = [("sdpa", DENSE), *(("sdpa", found.scored.method) for found in record.learnt)]
    timed = race(pretrained, data.examples[0], PLAN, contenders)
    write_record(record.model_copy(update={"timed": timed, "machine": machine()}), PATH)


def measure(pretrained: Pretrained, strength: float) -> None:
    """Learn, judge, record."""
    task = Retrieval(items=PLAN.items)
    experiment = Pairs(pretrained, task)
    texts = [example.document for example in experiment.examples]
    random.Random(0).shuffle(texts)
    batches = []
    for step in range(STEPS):
        inputs = embedding.inputs(pretrained, texts[step * BATCH : (step + 1) * BATCH], experiment.data.length)
        with torch.no_grad():
            batches.append((inputs, embedding.pool(pretrained.model, inputs)))

    def loss(batch: Any) -> torch.Tensor:
        inputs, dense = batch
        return 1 - (embedding.pool(pretrained.model, inputs) * dense).sum(1).mean()

    found = learn(
        pretrained.model, loss, batches, start=START, temperature=TEMPERATURE, strength=strength, rate=RATE,
        zero_pruned=PLAN.zero_pruned,
    )  # fmt: skip
    print(f"{found.method.name}: loss {found.losses[0]:.3f} to {found.losses[-1]:.3f}", flush=True)
    print(f"kept {found.kept[0]:.3f} to {found.kept[-1]:.3f}", flush=True)
    baseline, _ = score(pretrained, task, experiment.data, PLAN, "sdpa", DENSE)
    outcome, tokens = score(pretrained, task, experiment.data, PLAN, "sdpa", found.method.name)
    judged = quality(found.method.name, outcome, baseline, experiment.data, task.higher_is_better)
    scored = Scored(
        implementation="sdpa", method=found.method.name, keep_ratio=sum(tokens) / len(tokens), tokens=tokens,
        quality=judged,
    )  # fmt: skip
    print(f"keep ratio {scored.keep_ratio:.3f}, score {judged.score:.4f}", flush=True)
    record = (
        LearntRecord.model_validate_json(PATH.read_text())
        if PATH.exists()
        else LearntRecord(
            model="minilm", data=experiment.summary, steps=STEPS, batch=BATCH, start=START.name,
            temperature=TEMPERATURE, rate=RATE, machine=machine(), learnt=[],
        )
    )  # fmt: skip
    learning = Learning(strength=strength, losses=found.losses, kept=found.kept, scored=scored)
    others = [other for other in record.learnt if other.strength != strength]
    every = sorted([*others, learning], key=lambda one: one.strength)
    write_record(record.model_copy(update={"learnt": every}), PATH)


def main(arguments: Sequence[str]) -> None:
    """Run one of the commands above."""
    if not arguments:
        sys.exit(__doc__)
    torch.set_num_threads(THREADS)
    pretrained = load("minilm")
    if list(arguments) == ["time"]:
        measure_times(pretrained)
        return
    for strength in map(float, arguments):
        measure(pretrained, strength)


if __name__ == "__main__":
    main(sys.argv[1:])
