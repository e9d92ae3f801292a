"""Methods that choose weights or inputs, by name."""

from __future__ import annotations

from typing import TypeVar

from dynattn.methods.classes import Classes
from dynattn.sparsity.method import SparsityMethod

_Class = TypeVar("_Class", bound=type[SparsityMethod])

_known: Classes[SparsityMethod] = Classes(SparsityMethod, "dynattn.sparsity.SparsityMethod")


def register(cls: _Class) -> _Class:
    """Make a class of methods known by its names to :func:`parse`. A class decorator.

    Args:
        cls: a subclass of :class:`~dynattn.sparsity.WeightSparsity` or :class:`~dynattn.sparsity.ActivationSparsity`.
            Registering it again, as a notebook does, replaces it.

    Returns:
        The class.

    Raises:
        TypeError: it is no such class.
    """
    _known.add(cls)
    return cls


def find(name: str) -> SparsityMethod | None:
    """The method that a short name stands for, as :func:`parse` gives it, or None where there is none."""
    return _known.find(name)


def parse(name: str) -> SparsityMethod:
    """The method that a short name stands for.

    Args:
        name: as a method's ``name`` gives it.

    Returns:
        The method; ``parse(method.name) == method``.

    Raises:
        ValueError: no method has this name, or the method refuses what the name says.
    """
    found = find(name)
    if found is not None:
        return found
    raise ValueError(
        f"sparsity.parse: name must be a short name of a method that chooses weights or inputs: got {name!r}; use "
        "'magnitude-0.5', 'nmweight-2-4', 'wanda-0.5', 'randomweight-0.5', 'nmact-8-16', 'teal-0.5', 'wina-0.5' or "
        "'chess-0.5', and register() for a method of your own"
    )
