"""Recipes of training, by name."""

from __future__ import annotations

from typing import TypeVar

from dynattn.methods.classes import Classes
from dynattn.sparsity.training.base import Recipe

_Class = TypeVar("_Class", bound=type[Recipe])

_known: Classes[Recipe] = Classes(Recipe, "dynattn.sparsity.training.Recipe")


def register(cls: _Class) -> _Class:
    """Make a class of recipes known by its names to :func:`parse`. A class decorator.

    Args:
        cls: a subclass of :class:`~dynattn.sparsity.training.Recipe`. Registering it again replaces it.

    Returns:
        The class.

    Raises:
        TypeError: it is no such class.
    """
    _known.add(cls)
    return cls


def find(name: str) -> Recipe | None:
    """The recipe that a short name stands for, as :func:`parse` gives it, or None where there is none."""
    return _known.find(name)


def parse(name: str) -> Recipe:
    """The recipe that a short name stands for.

    Args:
        name: as a recipe's ``name`` gives it.

    Returns:
        The recipe; ``parse(recipe.name) == recipe``.

    Raises:
        ValueError: no recipe has this name, or the recipe refuses what the name says.
    """
    found = find(name)
    if found is not None:
        return found
    raise ValueError(
        f"training.parse: name must be a short name of a recipe: got {name!r}; use 'sr-ste-2-4', "
        "'mdgf-exponential-1-8' or 'bdwp-2-8', and register() for a recipe of your own"
    )
