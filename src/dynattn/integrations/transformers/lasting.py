"""Contexts that a model stays in until it is given another attention, for tuned files."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack
from typing import Any

_ATTRIBUTE = "dynattn_contexts"


def enter(model: Any, contexts: Sequence[AbstractContextManager[Any]]) -> None:
    """Enter contexts for good, one after another; those that the model is in are left before.

    Args:
        model: of Transformers.
        contexts: not entered yet. Where one cannot be entered, none is.
    """
    leave(model)
    with ExitStack() as undo:
        for context in contexts:
            undo.enter_context(context)
        if contexts:
            vars(model)[_ATTRIBUTE] = undo.pop_all()


def leave(model: Any) -> None:
    """Leave the contexts, the last one first; nothing where the model is in none."""
    undo = vars(model).pop(_ATTRIBUTE, None)
    if undo is not None:
        undo.close()
