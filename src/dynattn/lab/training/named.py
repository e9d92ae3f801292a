"""What a training may name: what mixes tokens in the place of dense attention, or what becomes of the weights."""

from __future__ import annotations

from collections.abc import Callable

from dynattn import sparsity
from dynattn.lab.figures import BASELINE
from dynattn.lab.training.mixers import mixer
from dynattn.sparsity import WeightSparsity, training
from dynattn.sparsity.training import Recipe


def of_weights(name: str) -> Recipe | WeightSparsity | None:
    """A recipe that thins weights out, or a mask that is there from the start; None where a name says neither.

    Raises:
        ValueError: the mask depends on inputs, which a training that begins has not seen.
    """
    recipe = training.find(name)
    if recipe is not None:
        return recipe
    found = sparsity.find(name)
    if not isinstance(found, WeightSparsity):  # others choose inputs, which no training here goes by
        return None
    if found.looks_at_inputs:
        raise ValueError(
            f"training: a mask must need no inputs to be trained with by name: {name} looks at them; use "
            "nmweight-2-4, or fix() it in a training of your own"
        )
    return found


def attention_of(name: str) -> str:
    """The name of the attention that a model has under a name: dense where the name is about weights."""
    return BASELINE if of_weights(name) is not None else name


def known(name: str, other: Callable[[str], object] = mixer) -> object:
    """What a name stands for.

    Args:
        name: short.
        other: reads the names that are not about weights.

    Raises:
        ValueError: there is no such thing.
    """
    return of_weights(name) or other(name)
