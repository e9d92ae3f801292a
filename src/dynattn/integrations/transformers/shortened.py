"""Has a model's layers see fewer tokens until it is given another attention: pruning that stays, for tuned files.

:meth:`dynattn.pruning.Pruning.apply` is a context. It is entered when a file is loaded, and left when the model
is given another attention.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dynattn.pruning import Trace

_ATTRIBUTE = "dynattn_shortened"


def shortening(model: Any, name: str) -> AbstractContextManager[Trace]:
    """A context in which the model's layers see the tokens that a pruning method leaves.

    States of pruned tokens are 0 where the model reads text, since sentence encoders average over all tokens.

    Args:
        model: of Transformers.
        name: of the method, as :func:`dynattn.pruning.parse` takes it.

    Raises:
        ValueError: there is no such method, or tokens of this model cannot be pruned.
    """
    from dynattn.pruning import parse  # imports torch._dynamo, which takes a second

    return parse(name).apply(model, zero_pruned=getattr(model, "main_input_name", None) == "input_ids")


def shorten(model: Any, name: str) -> None:
    """Enter the context for good; one that the model is in is left before."""
    lengthen(model)
    context = shortening(model, name)
    context.__enter__()
    vars(model)[_ATTRIBUTE] = context


def lengthen(model: Any) -> None:
    """Leave the context; nothing where the model is in none."""
    context = vars(model).pop(_ATTRIBUTE, None)
    if context is not None:
        context.__exit__(None, None, None)
