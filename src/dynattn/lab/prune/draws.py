"""Random search: parts to remove are drawn by chance several times, and the draw that does best on validation is taken.

The baseline of every choice of parts: a method must beat one random draw of as many parts. Source: random search over
the nodes of a network to keep, whose finding is that the best of many draws is no better than one (the reference trains
every candidate from its initialisation; here the model is pretrained, and nothing is trained).
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any, NamedTuple

from torch import nn

from dynattn.lab.figures import Interval
from dynattn.lab.prune.run import Exam, held_out
from dynattn.lab.prune.search import State
from dynattn.pruning import Removed
from dynattn.pruning.structure import Element, blocks, parts


class Counts(NamedTuple):
    """How many groups of heads and of neurons are removed."""

    heads: int
    neurons: int


class Draw(NamedTuple):
    """A draw: its seed, its mean score on validation, and what it retains of the held-out items."""

    seed: int
    removed: Removed
    validation: float
    held_out: Interval


def counts(model: nn.Module, removed: Removed) -> Counts:
    """How many groups a choice removes, blocks counted by their groups.

    Args:
        model: the whole model.
        removed: the choice.
    """
    found = {element for element in removed.elements if element.kind in ("heads", "neurons")}
    for element in removed.elements - found:
        found |= set(parts(model, element))
    return Counts(*(sum(element.kind == kind for element in found) for kind in ("heads", "neurons")))


def draw(model: nn.Module, wanted: Counts, seed: int) -> Removed:
    """Groups drawn by chance from all layers, without putting them back.

    Args:
        model: the whole model.
        wanted: how many of each kind.
        seed: of the draw.

    Returns:
        The choice: exactly so many.

    Raises:
        ValueError: there are not so many.
    """
    every = [part for block in blocks(model) for part in parts(model, block)]
    generator, chosen = random.Random(seed), list[Element]()
    for kind, count in (("heads", wanted.heads), ("neurons", wanted.neurons)):
        there = [part for part in every if part.kind == kind]
        if not 0 <= count <= len(there):
            raise ValueError(f"draw: {kind} must be from 0 to the {len(there)} groups that there are: got {count}")
        chosen += generator.sample(there, count)
    return Removed(frozenset(chosen))


def random_search(exam: Exam, wanted: Counts, draws: int, told: Callable[[Draw], Any] = lambda _: None) -> Draw:
    """The best of several draws by the mean of the validation items.

    Args:
        exam: the model and its items.
        wanted: how many groups each draw removes.
        draws: how many; their seeds count from 0.
        told: called with each draw.

    Returns:
        The best one.

    Raises:
        ValueError: no draw was asked for, or there are not so many groups.
    """
    if draws < 1:
        raise ValueError(f"random_search: draws must be at least 1: got {draws}")
    sign, found = (1 if exam.task.higher_is_better else -1), list[Draw]()
    for seed in range(draws):
        state = State(draw(exam.pretrained.model, wanted, seed))
        scores = exam.scores(state)
        one = Draw(seed, state.removed, float(scores[: exam.validation].mean()), held_out(exam, scores))
        told(one)
        found.append(one)
    return max(found, key=lambda one: sign * one.validation)
