"""Whole layers at a given depth: the least harmful ones, one after the other, and ones drawn by chance.

What the layers of the least gradient flow, removed at once, are held against: a choice that costs one product of the
Hessian has to stand beside one that costs a score of every layer in every round, and beside one that costs nothing.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection
from typing import Any

from dynattn.lab.prune.run import Exam
from dynattn.lab.prune.search import State
from dynattn.pruning import Element, Removed
from dynattn.pruning.structure import blocks


def whole(exam: Exam, layers: Collection[int]) -> Removed:
    """Whole layers.

    Args:
        exam: the model.
        layers: their numbers.

    Returns:
        All blocks of these layers.
    """
    return Removed(frozenset(block for block in blocks(exam.pretrained.model) if block.layer in layers))


def least_harmful(
    exam: Exam, layers: int, told: Callable[[int], Any] = lambda _: None, known: Collection[int] = ()
) -> list[int]:
    """Layers that are removed one after the other: in each round the one without which validation is best.

    Args:
        exam: the model and its items.
        layers: how many to remove.
        told: called with each layer as it goes.
        known: those that an earlier run removed already, in order.

    Returns:
        The layers in the order in which they went.

    Raises:
        ValueError: there are not so many layers.
    """
    every = _layers(exam, layers)
    gone, sign = list(known)[:layers], 1 if exam.task.higher_is_better else -1
    while len(gone) < layers:
        trials = {layer: State(whole(exam, [*gone, layer])) for layer in every if layer not in gone}
        means = {layer: sign * exam.scores(state)[: exam.validation].mean() for layer, state in trials.items()}
        gone.append(max(means, key=lambda layer: (means[layer], layer)))
        told(gone[-1])
    return gone


def by_chance(exam: Exam, layers: int, seed: int) -> list[int]:
    """Layers drawn by chance.

    Args:
        exam: the model.
        layers: how many.
        seed: of the draw.

    Raises:
        ValueError: there are not so many layers.
    """
    return random.Random(seed).sample(_layers(exam, layers), layers)


def _layers(exam: Exam, wanted: int) -> list[int]:
    """The numbers of the layers, of which one has to be left."""
    found: list[Element] = [block for block in blocks(exam.pretrained.model) if block.kind == "attention"]
    if not 0 <= wanted < len(found):
        raise ValueError(f"prune: layers to remove must be from 0 to {len(found) - 1}: got {wanted}")
    return sorted(block.layer for block in found)
