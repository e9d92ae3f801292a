"""What to keep: one frozen dataclass a file."""

from __future__ import annotations

from dynattn.methods.base import Method
from dynattn.methods.nm import NM

__all__ = ["NM", "Method", "parse"]


def parse(name: str) -> Method:
    """The method that a short name stands for.

    Args:
        name: ``dense``, ``nm-2-4``, ``nm-1-2-x16-w64-s4`` (stride 16, window 64, 4 sinks), …

    Returns:
        The method; ``parse(method.name)`` computes what ``method`` computes.

    Raises:
        ValueError: no method has this name.
    """
    method = NM.from_name(name)
    if method is None:
        raise ValueError(
            f"parse: name must be a method's short name: got {name!r}; use 'dense', 'nm-N-M' or 'nm-N-M-xX-wW-sS', "
            "as in 'nm-2-4' or 'nm-1-2-x16-w64-s4'"
        )
    return method
