"""How the command at hand spells its options, for the advice in errors: ``compare``'s ``--text`` is ``tune``'s
``--texts``. What several commands share asks here; by default options are spelt as in ``compare``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar

_NONE: Mapping[str, str] = {}
_spelt: ContextVar[Mapping[str, str]] = ContextVar("spelt", default=_NONE)


def spelt(option: str) -> str:
    """An option as the command at hand has it.

    Args:
        option: as ``dynattn compare`` has it, for example ``--text``.
    """
    return _spelt.get().get(option, option)


@contextmanager
def spelling(names: Mapping[str, str]) -> Iterator[None]:
    """Let options be named otherwise meanwhile.

    Args:
        names: of this command, by those of ``dynattn compare``.
    """
    token = _spelt.set(names)
    try:
        yield
    finally:
        _spelt.reset(token)
