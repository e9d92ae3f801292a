"""Which method to take: of those that lose little enough everywhere, the cheapest."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from dynattn.lab.frontier.summary import Contender

LEAST = (0.99, 0.95, 0.90)
"""What has to be retained in the worst exam."""

COSTS: dict[str, Callable[[Contender], float | None]] = {
    "time": lambda contender: contender.time,
    "FLOPs": lambda contender: contender.flops,
    "pairs": lambda contender: contender.density,
}
"""What a method may be cheap in, as shares of dense attention's."""


class Pick(NamedTuple):
    """The cheapest method that retains enough; None where none does, or none costs less than dense attention."""

    least: float
    cost: str
    contender: Contender | None


def comparable(contenders: Sequence[Contender]) -> list[Contender]:
    """Those that took the most exams: worst and mean of others, as merged sweeps hold them, are of other exams.

    Args:
        contenders: of one phase.
    """
    most = max((len(contender.results) for contender in contenders), default=0)
    return [contender for contender in contenders if len(contender.results) == most]


def picks(contenders: Sequence[Contender]) -> list[Pick]:
    """For every bound and every cost, the cheapest comparable method whose worst exam stays above the bound.

    Args:
        contenders: of one phase.
    """
    found = []
    for least in LEAST:
        enough = [contender for contender in comparable(contenders) if contender.worst.retained.mean >= least]
        for name, cost in COSTS.items():
            cheaper = [(value, one) for one in enough if (value := cost(one)) is not None and value < 1]
            best = min(cheaper, key=lambda pair: pair[0], default=None)
            found.append(Pick(least, name, None if best is None else best[1]))
    return found


def undominated(contenders: Sequence[Contender], cost: Callable[[Contender], float | None]) -> list[Contender]:
    """Comparable ones that no other one beats in both the worst exam and the cost: the frontier, the cheapest first.

    Args:
        contenders: of one phase.
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
