"""A task of the user's own: ``module:function``, or one of lm-eval's by its name.

A function ``make(pretrained, part)`` gives a :class:`dynattn.lab.tasks.Task`; :mod:`dynattn.lab.tasks.own` makes one of
items and a function that scores an item. ``part`` is 0 for the search, 1 and more for the tries of the proof, and each
must give other items.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from dynattn.lab.models import Pretrained
from dynattn.lab.tasks import Task
from dynattn.lab.tasks.own import told
from dynattn.lab.tune.exams import Exam, prepared
from dynattn.lab.tune.plan import Counts

BATCH = 8
"""Items of a task for each that the plan counts, where they can be scored one without the others."""

Make = Callable[[Pretrained, int], Any]


def found(task: str) -> Make:
    """The function that ``module:function`` names, or one that gives the items of a task of lm-eval's.

    Raises:
        ValueError: there is none.
        ImportError: lm-eval is asked for and is not installed.
    """
    module, colon, name = task.partition(":")
    if not colon:
        from dynattn.lab.tune import harness

        return harness.find(task)
    try:
        function = getattr(importlib.import_module(module), name)
    except Exception as error:  # the module's code may raise anything
        raise ValueError(
            f"tune: task must name a function that can be imported: got {task!r}: {error or type(error).__name__}; "
            "put its folder into PYTHONPATH, and see that python imports it"
        ) from error
    if not callable(function) or not _takes_two(function):
        raise ValueError(
            f"tune: task must name a function of the model and of the part's number: {task!r} is "
            f"{'one of other arguments' if callable(function) else 'a ' + type(function).__name__}; see docs/tune.md"
        )
    return function


def _takes_two(function: Callable[..., Any]) -> bool:
    """Whether a function can be called with two arguments; yes, where it does not tell."""
    try:
        inspect.signature(function).bind(None, 0)
    except TypeError:
        return False
    except ValueError:
        return True
    return True


def written(task: str) -> str | None:
    """The text that makes a task, by which runs of it are told apart; None where its name is all there is.

    Args:
        task: ``module:function``, a file that describes a task of lm-eval's, or the name of one.
    """
    module, colon, _ = task.partition(":")
    file = getattr(importlib.import_module(module), "__file__", None) if colon else task
    if file is None or not Path(file).is_file():
        return None
    return Path(file).read_bytes().decode("utf-8", "replace")


def exam(make: Make, pretrained: Pretrained, part: int, counts: Counts) -> Exam:
    """The items of a part, as many as the plan counts.

    Args:
        make: from :func:`found`.
        pretrained: the model.
        part: 0 for the search, 1 and more for the tries of the proof.
        counts: of the plan.

    Raises:
        ValueError: the function gives no task, or one for another kind of model.
    """
    with told(f"tune: --task's function must give the items of part {part}: it"):
        task = make(pretrained, part)
    if not isinstance(task, Task):
        raise ValueError(f"tune: --task's function must give a dynattn.lab.tasks.Task: got {type(task).__name__}")
    if pretrained.kind not in task.kinds:
        raise ValueError(
            f"tune: the task must fit the model: {task.name} takes {' or '.join(task.kinds)}, and {pretrained.name} is "
            f"of kind {pretrained.kind}; name another task"
        )
    return replace(prepared(task, pretrained), batch=BATCH).portion(0, counts.prove if part else counts.search)
