"""Tasks on real data, one file each; quality is measured by them."""

from __future__ import annotations

from dynattn.evals.models import Kind
from dynattn.evals.tasks.base import DataMissingError, Outcome, Prepared, Task
from dynattn.evals.tasks.features import Features
from dynattn.evals.tasks.manpages import Manpages
from dynattn.evals.tasks.passkey import Passkey
from dynattn.evals.tasks.perplexity import Perplexity
from dynattn.evals.tasks.retrieval import Retrieval
from dynattn.evals.tasks.saliency import Saliency
from dynattn.evals.tasks.speech import Speech

__all__ = ["TASKS", "DataMissingError", "Outcome", "Prepared", "Task", "default", "find"]

TASKS: dict[str, type[Task]] = {
    task.name: task for task in (Retrieval, Manpages, Perplexity, Passkey, Saliency, Features, Speech)
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
        raise ValueError(f"find: task must be one of {', '.join(TASKS)}: got {name!r}; check the spelling of --tasks")
    return TASKS[name]
