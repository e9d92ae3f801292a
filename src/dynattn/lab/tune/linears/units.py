"""The linear layers of a model, those together that read the same and are given one method."""

from __future__ import annotations

from typing import Any, NamedTuple

from dynattn.sparsity.sites import places


class Unit(NamedTuple):
    """Linear layers that are given one method.

    Attributes:
        layer: the number of the layer, from 0.
        kind: the first of their projections: ``q`` stands for ``q``, ``k`` and ``v``, and ``gate`` for ``up``, too.
        sites: their names, as in ``3.down``.
    """

    layer: int
    kind: str
    sites: tuple[str, ...]


def units(model: Any) -> list[Unit]:
    """The units of a model in the order in which they run; none where its layers cannot be named.

    Args:
        model: of Transformers.
    """
    try:
        found = places(model)
    except (ValueError, TypeError):
        return []
    sites: dict[tuple[int, str], list[str]] = {}
    for place in found:
        sites.setdefault(place.read, []).append(place.name)
    return [Unit(*read, tuple(its)) for read, its in sites.items()]


def of_kinds(found: list[Unit], method: str, *kinds: str) -> dict[str, str]:
    """One method in all units of some kinds, by site; of all kinds where none is named."""
    return {site: method for unit in found if not kinds or unit.kind in kinds for site in unit.sites}
