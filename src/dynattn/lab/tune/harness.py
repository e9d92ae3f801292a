"""Tasks of EleutherAI's lm-evaluation-harness by name, ``hellaswag``, or by their file, ``my-task.yaml``.

An item is a document, its score the first of the task's metrics that lies between 0 and 1. Documents are dealt to the
search, a fifth, and to the tries of the proof.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from contextlib import redirect_stderr
from functools import cache
from io import StringIO
from pathlib import Path
from typing import Any

import torch

from dynattn.lab.models import Pretrained
from dynattn.lab.tasks.own import Scored

_NAME = re.compile(r"^task:\s*[\"']?([\w.-]+)", flags=re.MULTILINE)
_SHARES = ((0.0, 0.2), (0.2, 0.6), (0.6, 1.0))  # of the documents, of each part
_SEED = 1234  # the harness's own, of the examples that a question is given with
_NOT_TO_BE_HAD = (OSError, ValueError, KeyError, ImportError, RuntimeError)


def find(name: str) -> Callable[[Pretrained, int], Scored]:
    """What gives the items of a task of the harness, part by part.

    Args:
        name: of the task, or the path of a file that describes one.

    Raises:
        ImportError: lm-eval is not installed.
        ValueError: there is no such task, or its data is not on this machine.
    """
    task = _load(name)
    order = torch.randperm(len(task.eval_docs), generator=torch.Generator().manual_seed(0), device="cpu").tolist()

    def make(pretrained: Pretrained, part: int) -> Scored:
        if pretrained.kind != "decoder":
            raise ValueError(
                f"tune: tasks of lm-eval's take a decoder: {pretrained.name} is of kind {pretrained.kind}; give a task "
                "of your own as module:function"
            )
        if pretrained.processor.bos_token_id is None and pretrained.processor.eos_token_id is None:
            raise ValueError(
                f"tune: lm-eval's tasks take a tokenizer that marks where a text begins or ends: that of "
                f"{pretrained.name} does neither; give a task of your own as module:function"
            )
        low, high = (round(share * len(order)) for share in _SHARES[part])
        return Scored(order[low:high], _scorer(task), f"lm-eval's {task.config.task}")

    return make


@cache
def _load(name: str) -> Any:
    try:
        from lm_eval.tasks import TaskManager  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ImportError(
            f"tune: --task {name} asks for a task of lm-eval's, which is not installed ({error}): pip install lm_eval; "
            "or name a function of your own as module:function"
        ) from error
    path = Path(name)
    described = path.suffix in (".yaml", ".yml")
    if described:
        name = _named(path)
    manager = TaskManager(include_path=str(path.resolve().parent) if described else None)
    if name not in manager.all_tasks:
        raise ValueError(
            f"tune: task must be one of lm-eval's, or module:function: it knows no {name!r}; `lm_eval ls tasks` lists "
            "them"
        )
    try:
        tasks = list(manager.load(name)["tasks"].values())
    except _NOT_TO_BE_HAD as error:
        raise ValueError(
            f"tune: the data of lm-eval's {name} must be on this machine: {error}; load the task once where there is a "
            "network"
        ) from error
    if len(tasks) != 1:
        raise ValueError(f"tune: --task takes one task: lm-eval's {name} is a group of {len(tasks)}; name one of them")
    (task,) = tasks
    if task.get_config("num_fewshot") is None:
        task.set_config(key="num_fewshot", value=0)
    return task


def _named(path: Path) -> str:
    """The name in a task's file."""
    try:
        found = _NAME.search(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"tune: task must be a file that can be read: {path}: {error}") from error
    if found is None:
        raise ValueError(f"tune: a task's file must name it: {path} has no line `task: …`")
    return found[1]


def _scorer(task: Any) -> Callable[[Pretrained, int], float]:
    from lm_eval.evaluator import evaluate  # pyright: ignore[reportMissingImports]
    from lm_eval.models.huggingface import HFLM  # pyright: ignore[reportMissingImports]

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    models: dict[int, Any] = {}

    def score(pretrained: Pretrained, document: int) -> float:
        if id(pretrained) not in models:
            models[id(pretrained)] = HFLM(pretrained=pretrained.model, tokenizer=pretrained.processor, batch_size=1)
        name = task.config.task
        task.set_fewshot_seed(seed=_SEED)
        with redirect_stderr(StringIO()):  # a bar of progress for every document
            found = evaluate(
                models[id(pretrained)], {name: task}, samples={name: [document]}, bootstrap_iters=0, log_samples=True
            )
        sample = found["samples"][name][0]
        for metric in sample["metrics"]:
            value = sample[metric]
            if isinstance(value, (int, float)) and task.higher_is_better().get(metric) and 0 <= value <= 1:
                return float(value)
        raise ValueError(
            f"tune: a task must have a score between 0 and 1 for each document: lm-eval's {name} has "
            f"{', '.join(sample['metrics'])}; give a task of your own as module:function"
        )

    return score
