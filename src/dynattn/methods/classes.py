"""A registry of classes whose objects are found by name: attention methods have one, methods that prune another, …"""

from __future__ import annotations

from typing import Any, Generic, Protocol, TypeVar


class Named(Protocol):
    """A class that recognises the names of its objects."""

    @classmethod
    def from_name(cls, name: str) -> Any:
        """The object that ``name`` stands for, or None where it is not a name of this class."""


_Named = TypeVar("_Named", bound=Named)
_Class = TypeVar("_Class", bound=type[Any])


class Classes(Generic[_Named]):
    """Registered classes, asked for a name in the order in which they came.

    Args:
        base: what each has to be a subclass of.
        called: where users find it.
        refusal: the error of :meth:`parse`, with ``{name!r}`` where the name is to stand.
    """

    def __init__(self, base: type[_Named], called: str, refusal: str = "name must be known: got {name!r}") -> None:
        self.base, self.called, self.refusal = base, called, refusal
        self.known: list[type[_Named]] = []

    def add(self, cls: _Class) -> _Class:
        """Make a class known by its names. A class decorator.

        Args:
            cls: a subclass of the base. It replaces one of the same module and name, as a notebook's cell that runs
                twice defines it. Its names are made of letters, digits, points and hyphens.

        Returns:
            The class.

        Raises:
            TypeError: it is no such class.
        """
        given: Any = cls
        if not (isinstance(given, type) and issubclass(given, self.base)):
            raise TypeError(f"register: cls must be a subclass of {self.called}: got {cls!r}; inherit from it")
        self.known[:] = [known for known in self.known if _path(known) != _path(cls)] + [given]
        return cls

    def find(self, name: str) -> _Named | None:
        """What a short name stands for, as :meth:`parse` gives it, or None where no class knows it."""
        return next((found for cls in self.known if (found := cls.from_name(name)) is not None), None)

    def parse(self, name: str) -> _Named:
        """What a short name stands for.

        Args:
            name: as the object's ``name`` gives it.

        Returns:
            The object; ``parse(object.name) == object``.

        Raises:
            ValueError: no object has this name, or the class refuses what the name says.
        """
        found = self.find(name)
        if found is None:
            raise ValueError(self.refusal.format(name=name))
        return found


def _path(cls: type) -> tuple[str, str]:
    return cls.__module__, cls.__qualname__
