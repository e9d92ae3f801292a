"""A registry of classes whose objects are found by name. Attention methods have one, and pruning methods another."""

from __future__ import annotations

from typing import Any, Generic, Protocol, TypeVar


class Named(Protocol):
    """A class that recognises the names of its objects."""

    @classmethod
    def from_name(cls, name: str) -> Any:
        """The object that ``name`` stands for, or None where it is not a name of this class."""


_Named = TypeVar("_Named", bound=Named)


class Classes(Generic[_Named]):
    """Registered classes, asked for a name in the order in which they came.

    Args:
        base: what each has to be a subclass of.
        called: where users find it.
    """

    def __init__(self, base: type[_Named], called: str) -> None:
        self.base, self.called = base, called
        self.known: list[type[_Named]] = []

    def add(self, cls: type[_Named]) -> None:
        """Register a class. It replaces one of the same module and name, as a notebook's cell that runs twice defines
        it.

        Raises:
            TypeError: it is no such class.
        """
        if not (isinstance(cls, type) and issubclass(cls, self.base)):
            raise TypeError(f"register: cls must be a subclass of {self.called}: got {cls!r}; inherit from it")
        self.known[:] = [known for known in self.known if _path(known) != _path(cls)] + [cls]

    def find(self, name: str) -> _Named | None:
        """What ``name`` stands for, or None where no class knows it."""
        return next((found for cls in self.known if (found := cls.from_name(name)) is not None), None)


def _path(cls: type) -> tuple[str, str]:
    return cls.__module__, cls.__qualname__
