"""The form of every arena task: sequences of tokens, each with a class, in two parts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

PADDING = 0
"""The token that fills ragged batches; no task uses it as one of its own."""


@dataclass(frozen=True)
class Split:
    """Sequences with their classes.

    Attributes:
        tokens: one array (length,) of token ids an example, from 1 to the task's ``vocabulary - 1``.
        labels: (examples,) int64, the class of each.
    """

    tokens: Sequence[np.ndarray]
    labels: np.ndarray


@dataclass(frozen=True)
class Data:
    """A task's examples.

    Attributes:
        train: the examples to learn from.
        test: held out; shares no sequence with ``train``.
        vocabulary: number of token ids, padding among them.
        classes: number of classes.
        length: no sequence is longer.
        ragged: whether lengths differ, so that batches need padding.
        source: where the data comes from, a line for people.
    """

    train: Split
    test: Split
    vocabulary: int
    classes: int
    length: int
    ragged: bool
    source: str
