"""What ``dynattn prune`` is asked for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from dynattn.lab.tasks import find

Order = Literal["greedy", "gradient-flow"]
"""Which blocks are tried first: the later ones, or those of the least gradient flow."""
First = Literal["attention", "mlp"]
"""Which kind of block is tried first: attention for speed, MLPs for size."""


@dataclass(frozen=True)
class Settings:
    """What to remove, and by what to judge.

    Args:
        model: a name that :func:`dynattn.lab.models.load` takes.
        task: the name of the task; None for the first one that fits the model.
        items: how many items; None for the command's default.
        tokens: how long the texts are; None for the command's default.
        text: the user's own texts, see :func:`dynattn.lab.tasks.texts.read`.
        tolerance: the share of the whole model's quality that may be lost, on validation items.
        order: which blocks are tried first.
        first: which kind of block is tried first, where the order is ``greedy``.
        hard: also try top-k attention in the layers that keep theirs.
        blocks_only: remove whole blocks, and no parts of them.

    Raises:
        ValueError: an argument is out of its range.
    """

    model: str = "minilm"
    task: str | None = None
    items: int | None = None
    tokens: int | None = None
    text: Path | None = None
    tolerance: float = 0.05
    order: Order = "greedy"
    first: First = "attention"
    hard: bool = False
    blocks_only: bool = False

    def __post_init__(self) -> None:
        for field, value in (("items", self.items), ("tokens", self.tokens)):
            if value is not None and value < 1:
                raise ValueError(f"prune: {field} must be at least 1: got {value}; leave it out for the default")
        if not 0 <= self.tolerance < 1:
            raise ValueError(f"prune: tolerance must be from 0 to below 1: got {self.tolerance}; 0.01 allows 1%")
        for field, value, kinds in (("order", self.order, Order), ("first", self.first, First)):
            if value not in get_args(kinds):
                raise ValueError(f"prune: {field} must be one of {', '.join(get_args(kinds))}: got {value!r}")
        if self.task is not None:
            find(self.task)
