"""The base class of tasks: real data prepared for a model, and a score for each item, so that differences are
paired."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
from torch import Tensor

from dynattn.lab.models import Kind, Pretrained

Inputs = dict[str, Any]
"""Keyword arguments of a model's forward: tensors with a batch dimension, and flags."""


class Pair(NamedTuple):
    """A query and the document that answers it: what an encoder is trained on."""

    query: str
    document: str


class Outcome(NamedTuple):
    """A model's results on the items of a task.

    Attributes:
        scores: (items,) float64; None where the agreement with the dense model is the score.
        outputs: (items, features) float32, to compare with the dense model's by cosine; None where there is nothing
            that a cosine would describe.
        hits: (items,) float64, 1 where the answer is right; None where the task has no right and wrong.
        beside: (items of another task,) float64, its scores, where they come along with these; None elsewhere.
    """

    scores: np.ndarray | None
    outputs: np.ndarray | None
    hits: np.ndarray | None = None
    beside: np.ndarray | None = None


@dataclass(frozen=True)
class Prepared:
    """A task's data, ready for one model.

    Attributes:
        labels: a name for each item, to tell which one suffered most.
        steps: how often ``evaluate`` reports progress.
        examples: model inputs of full-length items, batch 1, no padding; the first one is timed as well.
        length: tokens of the first example.
        summary: what the data is and how much of it.
        payload: the task's own.
        chance: the score that guessing gives; None where nobody knows it.
    """

    labels: tuple[str, ...]
    steps: int
    examples: tuple[Inputs, ...]
    length: int
    summary: str
    payload: Any
    chance: float | None = None


class Task(ABC):
    """A measure of quality on real data. Subclasses are frozen dataclasses, one file each; sizes are their fields.

    Attributes:
        name: as ``--tasks`` takes it.
        kinds: models that it fits.
        metric: what a score is.
        higher_is_better: which way is good.
        least: the score that dense attention has to reach for a comparison to say something; None for any that is
            better than guessing.
    """

    name: ClassVar[str]
    kinds: ClassVar[tuple[Kind, ...]]
    metric: ClassVar[str]
    higher_is_better: ClassVar[bool]
    least: ClassVar[float | None] = None

    @abstractmethod
    def prepare(self, pretrained: Pretrained) -> Prepared:
        """Read the data and turn it into the model's inputs.

        Raises:
            DataMissingError: the data is not on this machine.
            ValueError: the data does not suffice.
        """

    @abstractmethod
    def evaluate(self, pretrained: Pretrained, data: Prepared, advance: Callable[[], None]) -> Outcome:
        """Score every item with the model as it now is.

        Args:
            pretrained: the model; its attention implementation is left as it is.
            data: what :meth:`prepare` gave for the same model.
            advance: called ``data.steps`` times.
        """

    def words(self, data: Prepared) -> Sequence[str]:
        """Texts that the model's tokenizer has to know; none for pictures and sound.

        Args:
            data: what :meth:`prepare` gave.
        """
        return ()


def uniform(pretrained: Pretrained) -> float | None:
    """Nats per token of a guess among all tokens alike; None where the model does not tell how many there are."""
    size = getattr(pretrained.model.config.get_text_config(), "vocab_size", None)
    return math.log(size) if size else None


def in_dtype(pretrained: Pretrained, inputs: Inputs) -> Inputs:
    """Pixels and sound in the dtype of the model's weights; token ids and masks as they are."""
    return {
        name: value.to(pretrained.model.dtype) if isinstance(value, Tensor) and value.is_floating_point() else value
        for name, value in inputs.items()
    }


def first_tensor(inputs: Inputs) -> Tensor:
    """The tensor that carries the batch: token ids, pixels or sound."""
    return next(value for value in inputs.values() if isinstance(value, Tensor))
