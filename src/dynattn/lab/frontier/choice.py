"""Chooses a method: the cheapest of those that surely lose little enough in every exam.

Advice rests on intervals and not on point estimates. The lower bound of what is retained has to be high enough in every
exam, a method has to beat the baselines that look at nothing, and a method that is called faster is faster in three
quarters of the rounds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from dynattn.lab.frontier.methods import is_baseline
from dynattn.lab.frontier.summary import Contender

LEAST = (0.99, 0.95, 0.90)
"""The shares of quality that may be asked for in the worst exam."""

COSTS: dict[str, Callable[[Contender], float | None]] = {
    "time": lambda contender: contender.time,
    "FLOPs": lambda contender: contender.flops,
    "pairs": lambda contender: contender.density,
}
"""The costs by which a method may be cheap, as shares of those of dense attention."""


class Pick(NamedTuple):
    """The cheapest method that surely retains enough.

    Attributes:
        least: the share that has to be retained.
        cost: a key of :data:`COSTS`.
        contender: the method; None where none is sure to retain enough, or none of those costs less than dense
            attention.
        enough: how many methods are sure to retain enough.
    """

    least: float
    cost: str
    contender: Contender | None
    enough: int


def comparable(contenders: Sequence[Contender]) -> list[Contender]:
    """The contenders that took the most exams. In merged sweeps others have a worst and a mean of other exams.

    Args:
        contenders: the contenders of one phase.
    """
    most = max((len(contender.results) for contender in contenders), default=0)
    return [contender for contender in contenders if len(contender.results) == most]


def picks(contenders: Sequence[Contender]) -> list[Pick]:
    """For every bound and every cost, the cheapest comparable method that is sure to stay above the bound everywhere.

    Methods that do not beat looking at nothing at the same budget, and these baselines themselves, are no advice.

    Args:
        contenders: the contenders of one phase.
    """
    found = []
    for least in LEAST:
        enough = [contender for contender in comparable(contenders) if _is_sure(contender, least)]
        for name, cost in COSTS.items():
            cheaper = [(value, one) for one in enough if (value := cost(one)) is not None and value < 1]
            if name == "time":
                cheaper = [(value, one) for value, one in cheaper if one.faster]
            best = min(cheaper, key=lambda pair: pair[0], default=None)
            found.append(Pick(least, name, None if best is None else best[1], len(enough)))
    return found


def _is_sure(contender: Contender, least: float) -> bool:
    if any(result.at_chance for result in contender.results):
        return False
    if contender.least is None or contender.least < least:
        return False
    return contender.beats_baselines is not False and not is_baseline(contender.entry.family)


def undominated(contenders: Sequence[Contender], cost: Callable[[Contender], float | None]) -> list[Contender]:
    """Comparable ones that no other one beats in both the worst exam and the cost: the frontier, the cheapest first.

    Args:
        contenders: the contenders of one phase.
        cost: as in :data:`COSTS`; what has none is left out.
    """
    priced = [(value, contender) for contender in comparable(contenders) if (value := cost(contender)) is not None]
    found: list[Contender] = []
    best = -float("inf")
    for _, contender in sorted(priced, key=lambda pair: (pair[0], -pair[1].worst.retained.mean)):
        if contender.worst.retained.mean > best:
            best = contender.worst.retained.mean
            found.append(contender)
    return found
