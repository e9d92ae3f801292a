"""An experiment: the model that is trained, its data, and how it is judged."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from torch import nn
from torch.utils.data import Dataset


def digest(parts: Iterable[str]) -> str:
    """A short name for data, for :meth:`Experiment.identity`: other data gets another one."""
    found = hashlib.sha256()
    for part in parts:
        found.update(part.encode() + b"\0")
    return found.hexdigest()[:16]


class Experiment(ABC):
    """Everything about a training run that its :class:`~dynattn.lab.training.Job` does not say.

    Attributes:
        name: the name for the title of the report.
        metric: what a score is.
        higher_is_better: which way is good.
        pretrained: whether the model is worth evaluating before any training.
        labels: a name for each held-out item.
        summary: a line for people: what the data is, and how much of it there is.
        chance: the score that guessing gives; None where nobody knows it.
    """

    name: str
    metric: str
    higher_is_better: bool
    pretrained: ClassVar[bool]
    labels: tuple[str, ...]
    summary: str
    chance: float | None = None

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """All that decides a result besides the job, as JSON takes it: a run is only resumed where this is the same."""

    @abstractmethod
    def model(self, method: str) -> nn.Module:
        """A model to train, its attention that of ``method``.

        Called right after seeding, so that weights made here depend on the seed alone. Its forward takes what
        :meth:`collate` gives as keyword arguments, and returns a mapping with ``"loss"``.

        Args:
            method: a short name, or ``sdpa``.
        """

    @abstractmethod
    def dataset(self) -> Dataset:
        """What is trained on: a map-style dataset whose examples depend on the index alone. Disjoint from the items."""

    @abstractmethod
    def collate(self, examples: list[Any]) -> dict[str, Any]:
        """A batch of examples as tensors."""

    @abstractmethod
    def steps(self) -> int:
        """How often :meth:`evaluate` reports progress."""

    @abstractmethod
    def evaluate(self, model: nn.Module, advance: Callable[[], None]) -> np.ndarray:
        """Score every held-out item.

        Args:
            model: what :meth:`model` gave, in eval mode, on its device.
            advance: called :meth:`steps` times.

        Returns:
            (items,) float64.
        """

    @abstractmethod
    def save(self, model: nn.Module, folder: Path) -> None:
        """Write a trained model so that its user can load it."""
