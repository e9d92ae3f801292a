"""Learn LTP's thresholds for MiniLM on passages that the quality benchmark never shows, then judge them hard.

What is learnt from is how far each passage's embedding turns from the dense model's: the task's own loss, ranking a few
passages, is near 0 from the start and says nothing.

    loss = mean over passages of 1 - cos(embedding, dense embedding) + λ · mean of the soft masks

    python benchmarks/pruning_learn.py STRENGTH        # 2 minutes on one idle core

Adds to benchmarks/results/pruning/minilm-learnt.json: for each strength λ, the way of the training, the thresholds, and
their quality without training the model's weights.
"""

from __future__ import annotations

import random
import sys
from typing import Any, Literal

import torch

from dynattn.bench.machine import machine
from dynattn.evals.compare.results import Record
from dynattn.evals.compare.statistics import quality
from dynattn.evals.models import load
from dynattn.evals.tasks import Retrieval, embedding
from dynattn.evals.training.pairs import Pairs
from dynattn.pruning import LTP
from dynattn.pruning.learn import learn

from pruning import DENSE, PLANS, RESULTS, THREADS, Scored, save, score  # isort: skip  # the script beside this one

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


def main(strength: float) -> None:
    """Learn, judge, record."""
    torch.set_num_threads(THREADS)
    path, plan = RESULTS / "minilm-learnt.json", PLANS["minilm"]
    pretrained = load("minilm")
    task = Retrieval(items=plan.items)
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
        zero_pruned=plan.zero_pruned,
    )  # fmt: skip
    print(f"{found.method.name}: loss {found.losses[0]:.3f} to {found.losses[-1]:.3f}", flush=True)
    print(f"kept {found.kept[0]:.3f} to {found.kept[-1]:.3f}", flush=True)
    baseline, _ = score(pretrained, task, experiment.data, plan, "sdpa", DENSE)
    outcome, tokens = score(pretrained, task, experiment.data, plan, "sdpa", found.method.name)
    judged = quality(found.method.name, outcome, baseline, experiment.data, task.higher_is_better)
    scored = Scored(
        implementation="sdpa", method=found.method.name, keep_ratio=sum(tokens) / len(tokens), tokens=tokens,
        quality=judged,
    )  # fmt: skip
    print(f"keep ratio {scored.keep_ratio:.3f}, score {judged.score:.4f}", flush=True)
    record = (
        LearntRecord.model_validate_json(path.read_text())
        if path.exists()
        else LearntRecord(
            model="minilm", data=experiment.summary, steps=STEPS, batch=BATCH, start=START.name,
            temperature=TEMPERATURE, rate=RATE, machine=machine(), learnt=[],
        )
    )  # fmt: skip
    learning = Learning(strength=strength, losses=found.losses, kept=found.kept, scored=scored)
    others = [other for other in record.learnt if other.strength != strength]
    save(record.model_copy(update={"learnt": [*others, learning]}), path)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(float(sys.argv[1]))
