"""What every arena task is: sequences of tokens with a class each, in two parts."""

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
        train: to learn from.
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


def stratified(labels: np.ndarray, held_out: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices of a split in which every class has the same share in both parts, up to rounding.

    Args:
        labels: (examples,) whatever shall be spread evenly: the class, or a finer group.
        held_out: share of the second part, between 0 and 1.
        seed: of the shuffling.

    Returns:
        Two sorted arrays of indices, without one in common.
    """
    draw = np.random.default_rng(seed)
    groups = [draw.permutation(np.flatnonzero(labels == label)) for label in np.unique(labels)]
    cuts = [round(len(group) * held_out) for group in groups]
    test = np.sort(np.concatenate([group[:cut] for group, cut in zip(groups, cuts, strict=True)]))
    train = np.sort(np.concatenate([group[cut:] for group, cut in zip(groups, cuts, strict=True)]))
    return train, test
