"""Scores a task with one attention, and describes the task beside its results."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from dynattn.integrations.transformers import observing
from dynattn.lab.figures import Quality, TaskResult
from dynattn.lab.models import Pretrained
from dynattn.lab.spelling import spelt
from dynattn.lab.tasks import Outcome, Prepared, Task

_UNKNOWN = 0.02
"""Share of unknown tokens above which texts are refused. BERT's tokenizer makes 0.01% of Wikipedia's unknown."""
_LOOKED_AT = 4000  # so many characters of a text are looked at


def prepare(task: Task, pretrained: Pretrained) -> Prepared:
    """A task's data, of texts that the model's tokenizer knows.

    Raises:
        ValueError: the tokenizer does not know the texts; or as :meth:`dynattn.lab.tasks.Task.prepare`.
    """
    data = task.prepare(pretrained)
    check_known(pretrained, task.words(data), task.name)
    return data


def check_known(pretrained: Pretrained, texts: Sequence[str], task: str) -> None:
    """Refuse texts of which a tokenizer makes unknown tokens: what a model says of those is about nothing.

    Args:
        pretrained: the model with its tokenizer.
        texts: their beginnings are looked at.
        task: named in the error.

    Raises:
        ValueError: more than one token in fifty is unknown.
    """
    unknown = getattr(pretrained.processor, "unk_token_id", None)
    if unknown is None or not texts:
        return
    cut = [text[:_LOOKED_AT] for text in texts]
    ids = [token for each in pretrained.processor(cut, add_special_tokens=False)["input_ids"] for token in each]
    share = ids.count(unknown) / max(1, len(ids))
    if share > _UNKNOWN:
        raise ValueError(
            f"{task}: the tokenizer must know the texts: that of {pretrained.name} makes unknown tokens of {share:.0%} "
            "of them; take the tokenizer that belongs to the model, or give texts in its language with "
            f"{spelt('--text')}"
        )


def evaluate(
    task: Task, data: Prepared, pretrained: Pretrained, implementation: str, advance: Callable[[], None]
) -> Outcome:
    """Score a task with one implementation, and make sure that the model really used it.

    Args:
        task: what to do.
        data: prepared by the task.
        pretrained: the model; it is left with the implementation.
        implementation: as ``set_attn_implementation`` takes it.
        advance: called after each step.

    Raises:
        ValueError: the implementation is dynattn's and the model made no call of it: models that write their own
            attention leave the setting aside, with a line in the log at most.
    """

    calls = 0

    def count(_: object) -> None:
        nonlocal calls
        calls += 1

    pretrained.model.set_attn_implementation(implementation)
    with observing(count):
        outcome = task.evaluate(pretrained, data, advance)
    if calls == 0 and implementation.startswith("dynattn:"):
        raise ValueError(
            f"compare: the model must take its attention from Transformers' interface: {pretrained.name} "
            f"({type(pretrained.model).__name__}) ran without one call of {implementation}, by attention of its own; "
            "call dynattn.attention in its attention module, or compare another model"
        )
    return outcome


def task_result(task: Task, data: Prepared, results: list[Quality], seconds: float) -> TaskResult:
    """What a task is, beside its results."""
    return TaskResult(
        name=task.name,
        title=(type(task).__doc__ or task.name).split(";")[0].split("\n")[0],
        metric=task.metric,
        higher_is_better=task.higher_is_better,
        data=data.summary,
        items=list(data.labels),
        length=data.length,
        seconds=seconds,
        results=results,
        chance=data.chance,
    )
