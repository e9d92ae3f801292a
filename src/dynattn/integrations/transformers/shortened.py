"""Has the layers of a model of Transformers see fewer tokens: pruning by name, for tuned files."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dynattn.pruning import Trace


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
