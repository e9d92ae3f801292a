"""Runs the comparison: it loads, evaluates, times, and looks at what is kept, in this order."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from dynattn.lab.compare import memory, speed
from dynattn.lab.compare.kept import kept
from dynattn.lab.compare.results import Comparison, Kept
from dynattn.lab.figures import BASELINE, UNFUSED, TaskResult
from dynattn.lab.machine import machine
from dynattn.lab.models import DTYPES, Kind, Pretrained, facts, load
from dynattn.lab.progress import Stage
from dynattn.lab.scoring import evaluate, prepare, task_result
from dynattn.lab.statistics import quality
from dynattn.lab.tasks import Prepared, Task, default, find, fitting, make
from dynattn.lab.tasks.base import Inputs
from dynattn.lab.tasks.texts import Text, read
from dynattn.methods import Method, parse

# Without training, a stride between the keys of a group takes away much of what N:M loses. A causal model relies on its
# nearest keys and its first few, so a window with sinks helps as much there.
_BY_DEFAULT: dict[Kind, tuple[str, ...]] = {
    "encoder": ("dense", "nm-2-4", "nm-1-2", "nm-1-2-x16"),
    "decoder": ("dense", "nm-2-4", "nm-1-2", "nm-1-2-x16", "nm-1-2-w64-s4"),
    "vision": ("dense", "nm-2-4", "nm-1-2", "nm-1-2-x16"),
    "speech": ("dense", "nm-2-4", "nm-1-2", "nm-1-2-x16"),
}


# So many tokens keep a few cores busy, and suffice to see what a method keeps; longer items are computed one by one.
# Two cores are busy at 512 tokens already: MiniLM takes 96 ms for one item, and 85 ms for each of four.
_ENOUGH_TOKENS = 2048


@dataclass(frozen=True)
class Settings:
    """What to compare.

    Args:
        model: a name that :func:`dynattn.lab.models.load` takes.
        methods: short names; empty for dense by the project's own kernel, 2:4, 1:2, 1:2 with stride 16, and for
            decoders 1:2 with a window.
        tasks: names; empty for those that fit the model.
        items: the number of items of each task; None for the task's default.
        tokens: the number of tokens of each text; None for the task's default.
        text: the user's own texts in place of the task's, see :func:`dynattn.lab.tasks.texts.read`.
        batch: items at once where throughput and memory are measured; None for as many as make 2048 tokens, and where
            that is one, latency alone is measured: it tells the throughput as well.
        seconds: how long to spend on each of the three timings.
        threads: how many threads torch uses; None leaves them.
        dtype: the dtype of the model, and so of both attentions: one of :data:`dynattn.lab.models.DTYPES`.
    """

    model: str = "minilm"
    methods: tuple[str, ...] = ()
    tasks: tuple[str, ...] = ()
    items: int | None = None
    tokens: int | None = None
    text: Path | None = None
    batch: int | None = None
    seconds: float = 10.0
    threads: int | None = None
    dtype: str = "float32"

    def __post_init__(self) -> None:
        for field in ("items", "tokens", "batch", "threads"):
            value = getattr(self, field)
            if value is not None and value < 1:
                raise ValueError(f"compare: {field} must be at least 1: got {value}; leave it out for the default")
        if self.seconds <= 0:
            raise ValueError(f"compare: seconds must be positive: got {self.seconds}")
        if self.dtype not in DTYPES:
            raise ValueError(f"compare: dtype must be one of {', '.join(DTYPES)}: got {self.dtype!r}")
        _ = self.asked  # unknown names are refused here
        for name in self.tasks:
            find(name)

    @cached_property
    def asked(self) -> tuple[Method, ...]:
        """The methods that were named."""
        return tuple(parse(name) for name in self.methods)


def compare(settings: Settings, stage: Stage) -> Comparison:
    """Compare a model under each method with itself under dense attention.

    Args:
        settings: what to compare.
        stage: shows progress.

    Returns:
        Quality, speed, memory and kept mass.

    Raises:
        ValueError: a name is unknown, or a task does not fit the model.
        dynattn.lab.tasks.DataMissingError: a task's data is not on this machine.
    """
    from dynattn.integrations.transformers import register

    began = time.perf_counter()
    texts = None if settings.text is None else read(settings.text)  # before the model is loaded, since this may fail
    kind = facts(settings.model).kind
    for name in settings.tasks or default(kind, settings.model):
        fitting(name, kind, settings.model, texts is not None)
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    advance = stage(f"load {settings.model}", 1)
    pretrained = load(settings.model, settings.dtype)
    advance()
    methods = _methods(settings, pretrained.kind)
    register(*methods)
    implementations = {BASELINE: "sdpa", **{method.name: f"dynattn:{method.name}" for method in methods}}
    prepared = _prepare(settings, texts, pretrained, stage)
    tasks = [_task(task, data, pretrained, implementations, stage) for task, data in prepared]
    first = prepared[0][1]
    enough = max(1, _ENOUGH_TOKENS // first.length)
    batch = settings.batch or enough
    timings = _timings(settings, batch, pretrained, implementations, first, stage)
    examples = first.examples[:enough]
    shown = [_kept(pretrained, method, implementations, examples, stage) for method in methods]
    advance = stage("peak memory", 1)
    contrast = {**implementations, UNFUSED: "eager"}
    largest = speed.batched(first.examples[0], batch)
    sizes, note = memory.peaks(settings.model, settings.dtype, contrast, largest)
    advance()
    pretrained.model.set_attn_implementation("sdpa")
    return Comparison(
        model=settings.model,
        kind=pretrained.kind,
        description=pretrained.description,
        dtype=settings.dtype,
        machine=machine() | {"transformers": _transformers_version()},
        methods=[method.name for method in methods],
        settings={k: str(v) if isinstance(v, Path) else v for k, v in dataclasses.asdict(settings).items()},
        tasks=tasks,
        memory=sizes,
        memory_note=note,
        kept=[found for found in shown if found is not None],
        seconds=time.perf_counter() - began,
        **timings,
    )


def _methods(settings: Settings, kind: Kind) -> list[Method]:
    return list(dict.fromkeys(settings.asked or map(parse, _BY_DEFAULT[kind])))


def _prepare(
    settings: Settings, texts: tuple[Text, ...] | None, pretrained: Pretrained, stage: Stage
) -> list[tuple[Task, Prepared]]:
    names = settings.tasks or default(pretrained.kind, pretrained.name)
    given: dict[str, Any] = {"items": settings.items, "tokens": settings.tokens, "texts": texts}
    advance = stage("prepare data", len(names))
    prepared = []
    for name in names:
        task = make(name, pretrained, **given)
        prepared.append((task, prepare(task, pretrained)))
        advance()
    return prepared


def _task(
    task: Task, data: Prepared, pretrained: Pretrained, implementations: Mapping[str, str], stage: Stage
) -> TaskResult:
    began = time.perf_counter()
    results = []
    baseline = None
    for method, implementation in implementations.items():
        outcome = evaluate(task, data, pretrained, implementation, stage(f"{task.name}: {method}", data.steps))
        baseline = baseline or outcome
        results.append(quality(method, outcome, baseline, data, task.higher_is_better))
    return task_result(task, data, results, time.perf_counter() - began)


def _timings(
    settings: Settings, batch: int, pretrained: Pretrained, implementations: Mapping[str, str], data: Prepared,
    stage: Stage,
) -> dict[str, Any]:  # fmt: skip
    """Time latency, throughput and attention alone. Latency has the unfused model beside it, for contrast."""
    one = data.examples[0]
    contrast = {**implementations, UNFUSED: "eager"}

    def timed(title: str, measure: Callable[..., Any], names: Mapping[str, str], inputs: Any) -> Any:
        began = time.perf_counter()
        whole = max(1, round(settings.seconds))
        ticks = stage(title, whole)
        done = 0

        def on_round(_: int) -> None:
            nonlocal done
            while done < min(whole, int(time.perf_counter() - began)):
                ticks()
                done += 1

        found = measure(pretrained, names, inputs, data.length, settings.seconds, on_round)
        while done < whole:
            ticks()
            done += 1
        return found

    latency, shares = timed("latency", speed.end_to_end, contrast, one)
    throughput = None
    if batch > 1:
        throughput, _ = timed("throughput", speed.end_to_end, implementations, speed.batched(one, batch))
    alone = timed("attention alone", speed.attention_alone, implementations, one)
    return {"latency": latency, "throughput": throughput, "attention": alone, "shares": shares}


def _kept(
    pretrained: Pretrained, method: Method, implementations: Mapping[str, str], examples: Sequence[Inputs], stage: Stage
) -> Kept | None:
    """The kept mass and density of a method; None for one that keeps everything."""
    if method.keeps_everything:
        return None
    advance = stage(f"kept mass: {method.name}", 1)
    pretrained.model.set_attn_implementation(implementations[method.name])
    found = kept(pretrained, method, examples)
    advance()
    return found


def _transformers_version() -> str:
    import transformers

    return transformers.__version__
