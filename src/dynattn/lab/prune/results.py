"""The record of a search, which is written after every trial."""

from __future__ import annotations

from typing import Any, Literal

from dynattn.lab.figures import Interval, Record
from dynattn.pruning import Removed


class Asked(Record):
    """What decides a search: a record goes on where these are the same.

    Attributes:
        model: as :func:`dynattn.lab.models.load` takes it.
        task: the name of the task.
        tokens: how long the texts are; None where the task has one size.
        texts: a digest of the user's texts; None for the task's own.
        tolerance: the share of quality that may be lost.
        order: which blocks are tried first.
        first: which kind of block is tried first.
        hard: whether top-k attention is tried, too.
        blocks_only: whether parts of blocks stay.
        items: a name for each item.
    """

    model: str
    task: str
    tokens: int | None
    texts: str | None
    tolerance: float
    order: str
    first: str
    hard: bool
    blocks_only: bool
    items: list[str]


class Trial(Record):
    """One element, or one layer's attention, on trial.

    Attributes:
        name: the element's, or ``attention-3=topk-0.25``.
        accepted: whether the model stays without it.
        change: what is retained of the whole model's quality, less what the best model so far retains, on the
            validation items.
        scores: the scores of the validation items.
    """

    name: str
    accepted: bool
    change: Interval
    scores: list[float]


class Pruning(Record):
    """A search and what it found.

    Attributes:
        asked: what decides it.
        description: the model.
        metric: what a score is.
        higher_is_better: which way is good.
        data: a line about the items.
        machine: see :func:`dynattn.lab.machine.machine`.
        validation: so many items, the first ones, decide; the others are looked at when the search has ended.
        whole: the scores of all items with the whole model.
        flow: the gradient flow of each block, by its name; empty where it was not asked for.
        trials: in the order in which they were made.
        removed: the names of the removed elements.
        attention: the name of the attention of what is left; None for the model's own.
        held_out: what is retained on the held-out items; None before the search has ended.
        parameters: how many the model had, and has; None before the search has ended.
        written: whether a model or a setting was written; None before that.
        seconds: how long all runs took together.
    """

    schema_version: Literal[1] = 1
    asked: Asked
    description: str
    metric: str
    higher_is_better: bool
    data: str
    machine: dict[str, Any]
    validation: int
    whole: list[float]
    flow: dict[str, float]
    trials: list[Trial]
    removed: tuple[str, ...] = ()
    attention: str | None = None
    held_out: Interval | None = None
    parameters: tuple[int, int] | None = None
    written: Literal["model", "setting"] | None = None
    seconds: float = 0.0

    @property
    def setting(self) -> Removed:
        """What is removed, to be applied."""
        return Removed.of(*self.removed)
