"""What the costs foretell for the whole model: along the path, for one method everywhere, and at other limits."""

from __future__ import annotations

from collections.abc import Sequence

from dynattn.lab.tune.choices import Choices, Point
from dynattn.lab.tune.results import Considered, Gain, Time
from dynattn.lab.tune.search import Search

LIMITS = (0.005, 0.01, 0.02, 0.05)
"""At which it is told what would be gained."""

_SHOWN = 24  # points of the path


def speedup(spent: Time, point: Point) -> float:
    """The predicted speed-up of the whole model: what the kernels save is taken from the forward's time."""
    return spent.forward / max(spent.forward - point.saved, spent.forward / spent.bound)


def considered(spent: Time, choices: Choices | None, search: Search | None) -> list[Considered]:
    """The path in even steps, one method everywhere for each candidate, and what was measured.

    Args:
        spent: where time goes.
        choices: the choices; None where the run ended before there were any.
        search: what measured; None likewise.
    """
    if choices is None:
        return []
    every = len(choices.moves)
    along = [choices.point(every * i // _SHOWN) for i in range(_SHOWN + 1)] if every else []
    single = [(name, choices.everywhere(name)) for name in choices.names]
    measured = search.measured if search else []
    return [
        *(_point("path", spent, point) for point in along),
        *(_point(name, spent, point) for name, point in single),
        *(_point("measured", spent, each.point, each.losses) for each in measured),
    ]


def gains(spent: Time, choices: Choices | None, search: Search | None) -> list[Gain]:
    """What would be gained at other limits; arguments as for :func:`considered`."""
    found = []
    for limit in LIMITS:
        harm = None if search is None else search.harm_at(limit)
        if harm is not None and choices is not None:
            found.append(Gain(max_loss=limit, speedup=speedup(spent, choices.within(harm))))
    return found


def _point(name: str, spent: Time, point: Point, losses: Sequence[float] = ()) -> Considered:
    return Considered(name=name, harm=point.harm, speedup=speedup(spent, point), losses=list(losses))
