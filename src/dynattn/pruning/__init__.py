"""Methods that shorten the sequence across layers: pruned tokens are gone, later layers are shorter.

from dynattn.pruning import parse

with parse("random-tokens-0.5").apply(model) as trace:
    output = model(**inputs)
"""

from __future__ import annotations

from dynattn.pruning.base import Attended, Course, Decision, Pruning, Seen, Start
from dynattn.pruning.baselines import FirstTokens, RandomTokens
from dynattn.pruning.dynamicvit import DynamicViT
from dynattn.pruning.engine import pruned
from dynattn.pruning.ltp import LTP
from dynattn.pruning.predictor import Predictors
from dynattn.pruning.spatten import SpAtten
from dynattn.pruning.work import Forward, LayerWork, Trace

__all__ = [
    "LTP", "Attended", "Course", "Decision", "DynamicViT", "FirstTokens", "Forward", "LayerWork", "Predictors",
    "Pruning", "RandomTokens", "Seen", "SpAtten", "Start", "Trace", "parse", "pruned",
]  # fmt: skip

_METHODS: tuple[type[Pruning], ...] = (SpAtten, LTP, RandomTokens, FirstTokens)


def parse(name: str) -> Pruning:
    """The method that a short name stands for.

    Args:
        name: as a method's ``name`` gives it.

    Returns:
        The method; ``parse(method.name) == method``.

    Raises:
        ValueError: no method has this name.
    """
    for method in _METHODS:
        found = method.from_name(name)
        if found is not None:
            return found
    raise ValueError(
        f"pruning.parse: name must be a pruning method's short name: got {name!r}; use 'spatten-0.5', "
        "'ltp-0.01', 'random-tokens-0.5' or 'first-tokens-0.5'"
    )
