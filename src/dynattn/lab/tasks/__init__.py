"""Tasks on real data, one file each; quality is measured by them."""

from __future__ import annotations

import dataclasses
from typing import Any

from dynattn.lab.data.packages import DataMissingError
from dynattn.lab.models import Kind, Pretrained, context
from dynattn.lab.spelling import spelt
from dynattn.lab.tasks.base import Outcome, Prepared, Task
from dynattn.lab.tasks.chains import Chains
from dynattn.lab.tasks.common_words import CommonWords
from dynattn.lab.tasks.counts import CommonWordsChosen, FrequentWords
from dynattn.lab.tasks.features import Features
from dynattn.lab.tasks.identifiers import Identifiers
from dynattn.lab.tasks.manpages import Manpages
from dynattn.lab.tasks.needle import MultiNeedle, Needle
from dynattn.lab.tasks.passkey import Passkey
from dynattn.lab.tasks.perplexity import Perplexity
from dynattn.lab.tasks.retrieval import Retrieval
from dynattn.lab.tasks.saliency import Saliency
from dynattn.lab.tasks.speech import Speech
from dynattn.lab.tasks.stories import StoryFiltering, StoryMultiHop, StoryRetrieval
from dynattn.lab.tasks.variables import Variables

__all__ = [
    "TASKS",
    "DataMissingError",
    "Outcome",
    "Prepared",
    "Task",
    "default",
    "find",
    "fitting",
    "make",
    "takes_texts",
]

TASKS: dict[str, type[Task]] = {
    task.name: task
    for task in (
        Retrieval,
        Manpages,
        Perplexity,
        Passkey,
        Needle,
        MultiNeedle,
        Variables,
        CommonWords,
        Identifiers,
        Chains,
        CommonWordsChosen,
        FrequentWords,
        StoryRetrieval,
        StoryMultiHop,
        StoryFiltering,
        Saliency,
        Features,
        Speech,
    )
}
"""Every task by name."""

_DEFAULT: dict[Kind, tuple[str, ...]] = {
    "encoder": ("retrieval",),
    "decoder": ("perplexity", "passkey"),
    "vision": ("features",),
    "speech": ("speech",),
}


def default(kind: Kind, model: str) -> tuple[str, ...]:
    """Names of the tasks that a model is judged by unless others are asked for.

    Args:
        kind: the model's.
        model: its name; one of them has a task of its own.
    """
    return ("saliency",) if model == "dinov2" else _DEFAULT[kind]


def find(name: str) -> type[Task]:
    """A task by name.

    Raises:
        ValueError: there is none of this name.
    """
    if name not in TASKS:
        raise ValueError(
            f"find: task must be one of {', '.join(TASKS)}: got {name!r}; check the spelling of {spelt('--tasks')}"
        )
    return TASKS[name]


def fitting(name: str, kind: Kind, model: str, texts: bool) -> None:
    """See that a task fits a model, which need not be loaded for it.

    Args:
        name: the name of the task.
        kind: the model's.
        model: its name.
        texts: whether the user gives texts.

    Raises:
        ValueError: there is no such task, it does not fit the model, or it takes no texts.
    """
    task = find(name)
    if kind not in task.kinds:
        raise ValueError(
            f"make: task {name} takes a model that is {' or '.join(task.kinds)}: {model} is {kind}; leave the task "
            "out, and one that fits is taken"
        )
    if texts and not takes_texts(name):
        raise ValueError(f"make: task {name} takes no texts: leave {spelt('--text')} out, or name another task")


def takes_texts(name: str) -> bool:
    """Whether a task can be done on the user's own texts."""
    return "texts" in {field.name for field in dataclasses.fields(find(name))}  # type: ignore[arg-type]


def make(name: str, pretrained: Pretrained, **fields: Any) -> Task:
    """A task for a model.

    Args:
        name: the name of the task.
        pretrained: the model.
        fields: the fields of the task; None for its default. Sizes that it does not have are left out, texts are not;
            no text is longer than the model takes.

    Raises:
        ValueError: there is no such task, it does not fit the model, or it takes no texts.
    """
    fitting(name, pretrained.kind, pretrained.name, fields.get("texts") is not None)
    kind = find(name)
    known = {field.name for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    task = kind(**{field: value for field, value in fields.items() if field in known and value is not None})
    if pretrained.kind != "decoder" or "tokens" not in known:  # encoders' texts are cut as they are read
        return task
    most = context(pretrained)
    longer = most is not None and task.tokens > most  # type: ignore[attr-defined]
    return dataclasses.replace(task, tokens=most) if longer else task  # type: ignore[type-var]
