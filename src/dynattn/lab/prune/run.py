"""Runs a search on a real model and a real task, and goes on with the record that is there."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dynattn.integrations.transformers import register
from dynattn.lab.figures import BASELINE, Interval
from dynattn.lab.frontier.cell import digest
from dynattn.lab.frontier.shares import retained
from dynattn.lab.machine import machine
from dynattn.lab.models import Kind, Pretrained, facts, load
from dynattn.lab.progress import Stage
from dynattn.lab.prune.losses import differentiable
from dynattn.lab.prune.results import Asked, Pruning, Trial
from dynattn.lab.prune.search import Judge, Search, State
from dynattn.lab.prune.settings import Settings
from dynattn.lab.records import read_record, write_record
from dynattn.lab.scoring import evaluate, prepare
from dynattn.lab.statistics import at_chance, cosines
from dynattn.lab.tasks import Outcome, Prepared, Task, default, fitting, make
from dynattn.lab.tasks.texts import read
from dynattn.methods import PerLayer, parse
from dynattn.pruning.structure import Element, blocks, gradient_flow, parts
from dynattn.pruning.structure.find import find

HARD = ("topk-0.25", "topk-0.5")
"""The attention that is tried in place of a layer's own, the cheapest first."""

_SIZES: dict[Kind, tuple[int | None, int | None]] = {"encoder": (72, 128), "decoder": (6, 512)}  # items, tokens


@dataclass(frozen=True)
class Exam:
    """A model and the items that judge it.

    Attributes:
        pretrained: the model.
        task: the task.
        data: prepared by it.
        whole: the outcome of the whole model.
        validation: so many items decide.
    """

    pretrained: Pretrained
    task: Task
    data: Prepared
    whole: Outcome
    validation: int

    def scores(self, state: State) -> np.ndarray:
        """A score for each item, validation first.

        Args:
            state: what is out.
        """
        implementation = attention(state) or BASELINE
        with state.removed.apply(self.pretrained.model):
            outcome = evaluate(self.task, self.data, self.pretrained, implementation, lambda: None)
        return scores(outcome, self.whole)


def scores(outcome: Outcome, whole: Outcome) -> np.ndarray:
    """The scores of an outcome; the agreement with the whole model where the task has none."""
    found = outcome.scores if outcome.scores is not None else cosines(outcome, whole)
    if found is None:
        raise ValueError("prune: an outcome must have scores or outputs: got neither; take another task")
    return found


def attention(state: State) -> str | None:
    """Transformers' name of the attention of a state, registered; None where every layer has the model's own."""
    if not state.hard:
        return None
    method = PerLayer(
        tuple((range(layer, layer + 1), parse(name)) for layer, name in sorted(state.hard)), parse("dense")
    )
    (implementation, *_) = register(method.name)
    return implementation


def examine(settings: Settings) -> Exam:
    """Load the model and the items, and score the whole model.

    Args:
        settings: what was asked for.

    Raises:
        ValueError: the task does not fit the model, or the texts do not suffice.
    """
    texts = None if settings.text is None else read(settings.text)
    kind = facts(settings.model).kind
    name = settings.task or default(kind, settings.model)[0]
    fitting(name, kind, settings.model, texts is not None)
    pretrained = load(settings.model)
    items, tokens = _SIZES.get(kind, (None, None))
    task = make(name, pretrained, items=settings.items or items, tokens=settings.tokens or tokens, texts=texts)
    data = prepare(task, pretrained)
    whole = evaluate(task, data, pretrained, BASELINE, lambda: None)
    return Exam(pretrained, task, data, whole, 2 * len(data.labels) // 3)


def prune(settings: Settings, path: Path, folder: Path, stage: Stage) -> Pruning:
    """Search, and write the record at ``path`` after every trial, and what was found into ``folder`` at the end.

    Args:
        settings: what to remove, and by what to judge.
        path: the record; a run that was stopped goes on with it.
        folder: gets the model or the setting.
        stage: shows progress.

    Returns:
        The whole record.

    Raises:
        ValueError: the model, the task or the record there does not fit.
    """
    began = time.perf_counter()
    advance = stage(f"load {settings.model}", 1)
    exam = examine(settings)
    _check(settings, exam)
    advance()
    found = _begun(settings, exam, path)
    if found.written is not None:
        return found
    earlier = found.seconds

    def note(trials: Sequence[Trial]) -> None:
        nonlocal found
        spent = earlier + time.perf_counter() - began
        found = found.model_copy(update={"trials": list(trials), "seconds": spent})
        write_record(found, path)

    judge = Judge(np.array(found.whole[: exam.validation]), found.higher_is_better, settings.tolerance)
    search = Search(judge, lambda state: exam.scores(state)[: exam.validation], found.trials, note)
    _run(search, settings, exam, found.flow, stage)
    note(search.trials)
    found = _ended(found, exam, search.state, folder)
    write_record(found, path)
    return found


def _check(settings: Settings, exam: Exam) -> None:
    """Refuse a search that can tell nothing, or not be ended."""
    whole, chance = scores(exam.whole, exam.whole), exam.data.chance
    if chance is not None and at_chance(tuple(map(float, whole)), chance, exam.task.higher_is_better):
        raise ValueError(
            f"prune: the whole model must do better than guesses: its {exam.task.metric} in {exam.task.name} is "
            f"{whole.mean():.4g}, and {chance:.4g} is a guess's, so that everything would look useless; take another "
            "--task, more --items, or texts that the model can read"
        )
    layers = find(exam.pretrained.model).layers
    if settings.hard and any(getattr(layer.attention.module, "layer_idx", None) is None for layer in layers):
        raise ValueError(
            f"prune: --hard must have attention modules that know their layer: those of {settings.model} have no "
            "layer_idx; leave --hard out"
        )


def _run(search: Search, settings: Settings, exam: Exam, flow: dict[str, float], stage: Stage) -> None:
    """Blocks, then parts of those that stayed, then cheaper attention."""
    model = exam.pretrained.model
    ordered = blocks(model, settings.first)
    if settings.order == "gradient-flow":
        ordered = tuple(sorted(ordered, key=lambda block: flow[block.name]))
    stayed = search.remove(_told(ordered, stage("blocks", len(ordered))))
    if not settings.blocks_only:
        smaller = [part for block in stayed for part in parts(model, block)]
        search.remove(_told(smaller, stage("heads and neurons", len(smaller))))
    if settings.hard:
        layers = sorted((block.layer for block in stayed if block.kind == "attention"), reverse=True)
        search.harden(_told(layers, stage("top-k", len(layers))), HARD)


def _told(elements: Sequence[Any], advance: Callable[[], None]) -> Any:
    """The elements, each told as done when the next one is asked for."""
    for element in elements:
        yield element
        advance()


def _begun(settings: Settings, exam: Exam, path: Path) -> Pruning:
    """The record to go on with."""
    texts = None if settings.text is None else digest([list(text) for text in read(settings.text)])
    asked = Asked(
        model=settings.model, task=exam.task.name, tokens=getattr(exam.task, "tokens", None), texts=texts,
        tolerance=settings.tolerance, order=settings.order, first=settings.first, hard=settings.hard,
        blocks_only=settings.blocks_only, items=list(exam.data.labels),
    )  # fmt: skip
    if path.exists():
        found = read_record(Pruning, path, "give another --output")
        if found.asked != asked:
            raise ValueError(
                f"prune: a record must be of one search: {path} is of other items or settings; give another --output"
            )
        return found
    flow: dict[Element, float] = {}
    if settings.order == "gradient-flow":
        loss = differentiable(exam.task, exam.data, exam.pretrained)
        flow = gradient_flow(exam.pretrained.model, loss)
    whole = scores(exam.whole, exam.whole)
    return Pruning(
        asked=asked, description=exam.pretrained.description, metric=exam.task.metric,
        higher_is_better=exam.task.higher_is_better, data=exam.data.summary, machine=machine(),
        validation=exam.validation, whole=[float(score) for score in whole],
        flow={element.name: value for element, value in flow.items()}, trials=[],
    )  # fmt: skip


def _ended(found: Pruning, exam: Exam, state: State, folder: Path) -> Pruning:
    """Look at the held-out items, once, and write what is left of the model."""
    kept = held_out(exam, exam.scores(state))
    model = exam.pretrained.model
    before, stack = _parameters(model), find(model).stack
    numbers = {id(layer): number for number, layer in enumerate(stack)}
    written = state.removed.export(model, folder)
    now = {numbers[id(layer)]: number for number, layer in enumerate(stack)}  # empty layers have left the model
    hard = tuple((now[layer], name) for layer, name in state.hard)
    if written == "model":
        with suppress(AttributeError):  # some models have no tokenizer
            exam.pretrained.processor.save_pretrained(folder)
    return found.model_copy(
        update={
            "removed": state.removed.names, "attention": attention(state._replace(hard=hard)), "held_out": kept,
            "written": written, "parameters": (before, _parameters(model)),
        }
    )  # fmt: skip


def held_out(exam: Exam, found: np.ndarray) -> Interval:
    """What is retained of the whole model's quality on the items that took no part in a search.

    Args:
        exam: the model and its items.
        found: the scores of all items.

    Returns:
        The interval of the share.
    """
    return retained_in(exam, found, slice(exam.validation, None))


def retained_in(exam: Exam, found: np.ndarray, part: slice) -> Interval:
    """What is retained of the whole model's quality on some of the items.

    Args:
        exam: the model and its items.
        found: the scores of all items.
        part: which items.

    Returns:
        The interval of the share.
    """
    own, whole = found[part], scores(exam.whole, exam.whole)[part]
    return retained([float(score) for score in own], [float(score) for score in whole], exam.task.higher_is_better)


def _parameters(model: Any) -> int:
    return sum(weight.numel() for weight in model.parameters())
