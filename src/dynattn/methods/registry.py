"""Methods by name: :func:`parse` finds a method, and :func:`register` makes a new class of methods known to it."""

from __future__ import annotations

import os
from importlib import import_module
from typing import TypeVar

from dynattn.methods.base import Method
from dynattn.methods.classes import Classes

PLUGINS = "DYNATTN_METHODS"
"""Environment variable: modules, separated by commas, that :func:`parse` imports before it gives a name up.

Processes that a command starts inherit it, so that they know the same methods.
"""

_Class = TypeVar("_Class", bound=type[Method])

_known: Classes[Method] = Classes(Method, "dynattn.methods.Method")
_parsed: dict[str, Method] = {}


def register(cls: _Class) -> _Class:
    """Make a class of methods known by its names, everywhere that methods are named. A class decorator.

        @dynattn.methods.register
        @dataclass(frozen=True)
        class Nearest(PairMethod): ...

    Args:
        cls: a subclass of :class:`~dynattn.methods.Method`. Registering it again, as a notebook does, replaces it. Its
            names are made of letters, digits, points and hyphens.

    Returns:
        The class.

    Raises:
        TypeError: it is no such class.
    """
    _known.add(cls)
    _parsed.clear()
    return cls


def _import_plugins() -> bool:
    """Import the modules that the environment names; True where it names any."""
    modules = [module for module in os.environ.get(PLUGINS, "").split(",") if module]
    for module in modules:
        try:
            import_module(module)
        except ImportError as error:
            raise ImportError(
                f"parse: {PLUGINS} must name modules that can be imported: got {module!r}: {error}; "
                "put their folder into PYTHONPATH"
            ) from error
    return bool(modules)


def parse(name: str) -> Method:
    """The method that a short name stands for.

    Args:
        name: ``dense``, ``nm-2-4``, ``nm-1-2-x16-w64-s4`` (stride 16, window 64, 4 sinks), ``topk-0.25``, …, or
            several joined as :mod:`dynattn.methods.grammar` says.

    Returns:
        The method; ``parse(method.name)`` computes what ``method`` computes.

    Raises:
        ValueError: no method has this name.
        ImportError: a module that ``DYNATTN_METHODS`` names cannot be imported.
    """
    if name in _parsed:
        return _parsed[name]
    method = _known.find(name)
    if method is None and _import_plugins():
        method = _known.find(name)
    if method is not None:
        return _parsed.setdefault(name, method)
    raise ValueError(
        f"parse: name must be a method's short name: got {name!r}; use 'dense', 'nm-2-4', 'nm-1-2-x16-w64-s4', "
        "'topk-0.25', 'window-64-s4', … (docs/methods/README.md lists them; shares have a point, as 0.25), and "
        "register() for a method of your own; what shortens the sequence, as 'spatten-0.5' does, goes around a model: "
        "dynattn.pruning"
    )


def given(method: Method | str, function: str) -> Method:
    """A method that is given as such or by its short name.

    Args:
        method: a method or its name.
        function: the function that was given it, for its error.

    Raises:
        TypeError: it is neither.
        ValueError, ImportError: as :func:`parse`.
    """
    if isinstance(method, str):
        return parse(method)
    if not isinstance(method, Method):
        raise TypeError(
            f"{function}: method must be a method or its short name: got {method!r}; pass NM(2, 4) or 'nm-2-4'"
        )
    return method
