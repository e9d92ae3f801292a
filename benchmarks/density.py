"""Quality without training against density, on the models that packages carry: one record a model.

    python benchmarks/density.py                    # all four, about half an hour on two idle cores
    python benchmarks/density.py minilm whisper

Writes benchmarks/results/density/<model>.json. Every method's result is written as soon as it is there: a run that
was killed goes on where it stopped when the same command is given again. Nothing is timed, so the machine need not be
idle.

What is measured, for each method N:M at each density, without and with a narrow window, and some with a stride:

- the task's score for each item, and its difference to dense attention, paired by item;
- density and kept mass of every head *on the dense model's own scores*, one pass for all methods;
- the kept mass that dynattn.theory expects of Gaussian scores with the head's standard deviation.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from transformers.utils.logging import disable_progress_bar

import dynattn
from dynattn import NM
from dynattn.integrations.transformers import Call, observing, register
from dynattn.lab.figures import BASELINE, Quality, Record, TaskResult
from dynattn.lab.inspect.measure import expected, scores, spread
from dynattn.lab.machine import machine
from dynattn.lab.models import Pretrained, load
from dynattn.lab.records import write_record
from dynattn.lab.scoring import evaluate, task_result
from dynattn.lab.statistics import quality
from dynattn.lab.tasks import Prepared, Task, find

RESULTS = Path(__file__).parent / "results" / "density"
PATTERNS = ((1, 8), (1, 4), (2, 8), (1, 2), (2, 4), (4, 8), (3, 4))
STRIDED = ((1, 2), (2, 4))
STRIDE = 16
_DRIFT = 1e-3  # a larger change in a score comes from other data or another model, and not from rounding


class Plan(NamedTuple):
    """The sizes of a model's run.

    Attributes:
        window: of the methods with a window: about 5% of the keys, and what fits the model's first tokens.
        sinks: likewise.
        tasks: sizes of each task, by name.
    """

    window: int
    sinks: int
    tasks: dict[str, dict[str, int]]


PLANS = {
    "minilm": Plan(16, 1, {"retrieval": {}}),
    "whisper": Plan(64, 4, {"speech": {}}),
    "dinov2": Plan(64, 1, {"saliency": {}}),  # one sink: the class token
    "smollm2": Plan(64, 4, {"perplexity": {}, "passkey": {}}),
}


class Mass(Record):
    """What a method keeps of the dense model's attention; means over all heads of all attention layers.

    Attributes:
        method: short name.
        density: kept pairs over allowed pairs, all heads' pairs together.
        kept: share of the dense weights on the kept pairs, mean over the queries.
        lowest_head: the smallest head's.
        expected: by the theory, from each head's sigma.
    """

    method: str
    density: float
    kept: float
    lowest_head: float
    expected: float


class Density(Record):
    """One model's record; ``sigma`` is [attention layer][head], ``sizes`` are those of the tasks where not default."""

    schema_version: Literal[1] = 1
    model: str
    kind: str
    description: str
    machine: dict[str, Any]
    sizes: dict[str, dict[str, int]]
    sigma: list[list[float]]
    masses: list[Mass]
    tasks: list[TaskResult]

    def mass(self, method: str) -> Mass:
        """The masses measured with ``method``."""
        return next(mass for mass in self.masses if mass.method == method)


def methods(plan: Plan) -> list[NM]:
    """Every pattern without and with the plan's window, the strided ones likewise, and dense."""
    plain = [NM(n, m) for n, m in PATTERNS] + [NM(n, m, stride=STRIDE) for n, m in STRIDED]
    windowed = [NM(nm.n, nm.m, plan.window, plan.sinks, nm.stride) for nm in plain]
    return [*plain, *windowed, NM(1, 1)]


class Look:
    """Looks at every attention call of the dense model: what would each method keep of it?

    Attributes:
        allowed: pairs that may be attended, all calls and heads.
        pairs: those of them that a method keeps.
        sigma: of the scores, [call][head].
        kept: mass kept by a method, [call][head].
        expected: by the theory, from a head's sigma, one entry a head of a call.
    """

    def __init__(self, chosen: Sequence[NM]) -> None:
        self.chosen = chosen
        self.allowed = 0
        self.pairs = dict.fromkeys(chosen, 0.0)
        self.sigma: list[list[float]] = []
        self.kept: dict[NM, list[list[float]]] = {method: [] for method in chosen}
        self.expected: dict[NM, list[float]] = {method: [] for method in chosen}

    def __call__(self, call: Call) -> None:
        of_head = [scores(call, head) for head in range(call.query.shape[1])]
        allowed = [s != -torch.inf for s in of_head]
        count = sum(int(a.sum()) for a in allowed)
        sigma = [spread(s, a) for s, a in zip(of_head, allowed, strict=True)]
        self.allowed += count
        self.sigma.append(sigma)
        for method in self.chosen:
            _, aux = dynattn.attention(
                call.query, call.key, call.value, method,
                attn_mask=call.attn_mask, causal=call.causal, scale=call.scale, return_aux=True,
            )  # fmt: skip
            self.pairs[method] += float(aux.density.double().mean()) * count
            self.kept[method].append(aux.kept_mass[0].double().mean(-1).tolist())
        for each, a in zip(sigma, allowed, strict=True):  # head by head: a window needs the integrals of its pattern
            for method in self.chosen:
                self.expected[method].append(expected(each, a, method))

    def mass(self, method: NM, examples: int) -> Mass:
        """The mean masses of ``method`` after the model has run ``examples`` inputs."""
        kept = _by_head(self.kept[method], examples)
        return Mass(
            method=method.name, density=self.pairs[method] / self.allowed, kept=kept.mean(),
            lowest_head=kept.min(), expected=float(np.mean(self.expected[method])),
        )  # fmt: skip


def _by_head(of_call: list[list[float]], examples: int) -> np.ndarray:
    """(layers, heads): mean over the examples of figures in the order of the calls, [examples · layers][heads]."""
    return np.array(of_call).reshape(examples, -1, len(of_call[0])).mean(0)


class Bars:
    """Progress in the terminal: a bar for the model, and one for the method at work."""

    def __init__(self, progress: Progress, model: str, steps: int) -> None:
        self._progress = progress
        self._all = progress.add_task(model, total=steps)
        self._one = progress.add_task("")

    def method(self, title: str, steps: int) -> Callable[[], None]:
        """A method begins; returns what to call after each of its steps."""
        self._progress.reset(self._one, description=f"  {title}", total=steps)
        return lambda: self._progress.advance(self._one)

    def done(self, steps: int = 1) -> None:
        """So many methods are done, or were there already."""
        self._progress.advance(self._all, steps)


@torch.inference_mode()
def record(model: str, path: Path, progress: Progress, plan: Plan) -> Density:
    """Measure a model, or what its record lacks, and write the record after every method.

    Args:
        model: its name.
        path: of the record; read first if it is there.
        progress: shows how far it is.
        plan: what to do.

    Returns:
        The whole record.

    Raises:
        ValueError: the record there was taken with other methods, sizes or data.
    """
    pretrained = load(model)
    chosen = methods(plan)
    register(*chosen)
    prepared = [(task, task.prepare(pretrained)) for task in (find(name)(**size) for name, size in plan.tasks.items())]
    bars = Bars(progress, model, 1 + (1 + len(chosen)) * len(prepared))
    found = _begin(path, plan, pretrained, chosen, prepared[0][1], bars)
    for task, data in prepared:
        found = _score(found, task, data, pretrained, chosen, path, bars)
    return found


def _begin(path: Path, plan: Plan, pretrained: Pretrained, chosen: Sequence[NM], data: Prepared, bars: Bars) -> Density:
    """The record there is, or a new one with the masses."""
    if path.exists():
        found = Density.model_validate_json(path.read_text())
        names = [mass.method for mass in found.masses]
        if names != [method.name for method in chosen] or found.sizes != plan.tasks:
            raise ValueError(
                f"density: a record must have the plan's methods and sizes: {path} has others; move it away"
            )
    else:
        advance = bars.method("kept mass", len(data.examples))
        look = Look(chosen)
        pretrained.model.set_attn_implementation("dynattn:dense")
        for inputs in data.examples:
            with observing(look):
                pretrained.model(**inputs)
            advance()
        found = Density(
            model=pretrained.name, kind=pretrained.kind, description=pretrained.description, machine=machine(),
            sizes=plan.tasks, sigma=_by_head(look.sigma, len(data.examples)).tolist(),
            masses=[look.mass(method, len(data.examples)) for method in chosen], tasks=[],
        )  # fmt: skip
        write_record(found, path)
    bars.done()
    return found


def _score(
    found: Density, task: Task, data: Prepared, pretrained: Pretrained, chosen: Sequence[NM], path: Path, bars: Bars
) -> Density:
    """Add to the record what it lacks of a task. Dense runs anew: agreement with its outputs is a figure."""
    others = [other for other in found.tasks if other.name != task.name]
    before = next((other for other in found.tasks if other.name == task.name), None)
    results = list(before.results) if before else []
    bars.done(len(results))
    if len(results) == 1 + len(chosen):
        return found
    start = time.perf_counter() - (before.seconds if before else 0.0)
    outcome = evaluate(task, data, pretrained, "sdpa", bars.method(f"{task.name}: {BASELINE}", data.steps))
    dense = outcome
    if before is not None:
        _check_unchanged(quality(BASELINE, dense, dense, data, task.higher_is_better), before, found.model)
    for name in (BASELINE, *(method.name for method in chosen))[len(results) :]:
        if name != BASELINE:
            advance = bars.method(f"{task.name}: {name}", data.steps)
            outcome = evaluate(task, data, pretrained, f"dynattn:{name}", advance)
        results.append(quality(name, outcome, dense, data, task.higher_is_better))
        part = task_result(task, data, results, time.perf_counter() - start)
        found = found.model_copy(update={"tasks": [*others, part]})
        write_record(found, path)
        bars.done()
    return found


def _check_unchanged(dense: Quality, before: TaskResult, model: str) -> None:
    """Differences are paired, so all of a record's scores have to be of the same data and weights."""
    there = before.of(BASELINE).scores
    if len(dense.scores) != len(there) or np.abs(np.subtract(dense.scores, there)).max() > _DRIFT:
        raise ValueError(
            f"density: dense attention must score as it did when the record was begun: {model} on {before.name} does "
            "not; the data or the packages have changed: move the record away and begin anew"
        )


def main(models: Sequence[str]) -> None:
    """Measure the models named, or all."""
    unknown = set(models) - set(PLANS)
    if unknown:
        raise SystemExit(f"density: model must be one of {', '.join(PLANS)}: got {', '.join(sorted(unknown))}")
    disable_progress_bar()  # Transformers' own bars would break ours
    columns = (TextColumn("{task.description:<36}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns) as progress:
        for model in models or PLANS:
            record(model, RESULTS / f"{model}.json", progress, PLANS[model])


if __name__ == "__main__":
    main(sys.argv[1:])
