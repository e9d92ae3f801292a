"""Methods by which layers see fewer tokens, by name."""

from __future__ import annotations

from typing import TypeVar

from dynattn.methods.classes import Classes
from dynattn.pruning.base import TokenMethod

_Class = TypeVar("_Class", bound=type[TokenMethod])

_known: Classes[TokenMethod] = Classes(TokenMethod, "dynattn.pruning.TokenMethod")


def register(cls: _Class) -> _Class:
    """Make a class of pruning methods known by its names to :func:`parse`. A class decorator.

        @dynattn.pruning.register
        @dataclass(frozen=True)
        class Newest(Pruning): ...

    Args:
        cls: a subclass of :class:`~dynattn.pruning.TokenMethod`, such as one of ``Pruning``. Registering it again, as a
            notebook does, replaces it. Its names are made of letters, digits, points and hyphens.

    Returns:
        The class.

    Raises:
        TypeError: it is no such class.
    """
    _known.add(cls)
    return cls


def find(name: str) -> TokenMethod | None:
    """The method that a short name stands for, as :func:`parse` gives it, or None where there is none."""
    return _known.find(name)


def parse(name: str) -> TokenMethod:
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
        f"pruning.parse: name must be a pruning method's short name: got {name!r}; use 'spatten-0.5', 'ltp-0.01', "
        "'random-tokens-0.5', 'first-tokens-0.5' or 'ftp-0.3', and register() for a method of your own"
    )
