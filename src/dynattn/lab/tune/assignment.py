"""Which method each head of each layer takes, as one method by name."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import groupby

from dynattn.methods import Method, PerHead, PerLayer, parse

Assignment = dict[int, tuple[str, ...]]
"""By layer: the method of each head."""


def method(assignment: Mapping[int, Sequence[str]]) -> Method:
    """The one method that an assignment is; the one most layers take is its default.

    Args:
        assignment: by layer, the method's short name of each head. All heads of a layer alike make no ``PerHead``.
    """
    names = {layer: _layer(heads) for layer, heads in sorted(assignment.items())}
    default = Counter(names.values()).most_common(1)[0][0]
    pairs, others = [], [(layer, name) for layer, name in names.items() if name != default]
    for name, run in groupby(enumerate(others), key=lambda each: (each[1][1], each[1][0] - each[0])):
        layers = [layer for _, (layer, _) in run]
        pairs.append((range(layers[0], layers[-1] + 1), parse(name[0])))
    return PerLayer(tuple(pairs), parse(default)) if pairs else parse(default)


def shares(assignment: Mapping[int, Sequence[str]]) -> dict[str, float]:
    """Share of all heads that each method has, the largest first."""
    counted = Counter(name for heads in assignment.values() for name in heads)
    return {name: count / counted.total() for name, count in counted.most_common()}


def _layer(heads: Sequence[str]) -> str:
    return heads[0] if len(set(heads)) == 1 else PerHead(tuple(parse(name) for name in heads)).name
