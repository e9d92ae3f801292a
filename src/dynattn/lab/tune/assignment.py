"""Which method each head of each attention module takes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from dynattn.methods import PerHead, parse

Assignment = Mapping[str, Sequence[str]]
"""By an attention module's name: the short name of each head's method."""


def methods(assignment: Assignment) -> dict[str, str]:
    """The method of each module, as :func:`dynattn.integrations.transformers.assign` takes them."""
    return {module: of_heads(heads) for module, heads in assignment.items()}


def of_heads(heads: Sequence[str]) -> str:
    """One method's name for heads; all of them alike make no ``PerHead``."""
    return heads[0] if len(set(heads)) == 1 else PerHead(tuple(parse(name) for name in heads)).name


def shares(assignment: Assignment) -> dict[str, float]:
    """Share of all heads that each method has, the largest first."""
    counted = Counter(name for heads in assignment.values() for name in heads)
    return {name: count / counted.total() for name, count in counted.most_common()}
