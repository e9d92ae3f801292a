"""The fastest by the model's clock: an assignment, a method that shortens the sequence, or both together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from dynattn.lab.tune import shorten
from dynattn.lab.tune.choices import Choices, Point
from dynattn.lab.tune.results import Shortened
from dynattn.lab.tune.search import Measured, Search

_ROOM = 0.5  # of the harm, where the sequence is shortened as well


def find(
    shorter: Sequence[Sequence[str]], choices: Choices, search: Search, best: Measured | None, forward: float,
    quick: Callable[[Measured], float], in_time: Callable[[], bool], advance: Callable[[], None],
) -> tuple[Measured | None, list[Shortened]]:  # fmt: skip
    """What was found so far, or something faster that shortens the sequence; and all that was looked at.

    Args:
        shorter: the settings of each method, the mildest first.
        choices: the choices, with the path.
        search: measures.
        best: what was found so far; None for nothing.
        forward: seconds of the dense model's.
        quick: the speed-up of the whole model, measured.
        in_time: whether another one may be measured.
        advance: called after each.
    """
    looked: list[Shortened] = []

    def strongest(names: Sequence[str], base: Point) -> list[tuple[float, Measured]]:
        found, its = _strongest(names, base, search, quick, in_time, advance)
        looked.extend(its)
        return found

    raced = [] if best is None else [(quick(best), best)]
    for names in shorter:
        raced += strongest(names, choices.point(0))
    alone = [each for each in raced if each[1].pruning]
    if alone and best is not None:
        name = max(alone, key=lambda each: each[0])[1].pruning
        names = next(names for names in shorter if name in names)
        raced += strongest(names, choices.milder(best.point, _ROOM))
    speedup, found = max(raced, key=lambda each: each[0], default=(1.0, None))
    if found is None or speedup <= 1:
        return best, looked
    return replace(found, point=replace(found.point, saved=forward * (1 - 1 / speedup))), looked


def _strongest(
    names: Sequence[str], base: Point, search: Search, quick: Callable[[Measured], float],
    in_time: Callable[[], bool], advance: Callable[[], None],
) -> tuple[list[tuple[float, Measured]], list[Shortened]]:  # fmt: skip
    """The strongest of a method's settings that keeps the limits, with its speed-up; empty where none does."""
    found: dict[str, Measured] = {}

    def keeps(name: str) -> bool:
        found[name] = search.lost(base, name, lambda: None)
        advance()
        return found[name].keeps

    best = shorten.strongest(names, keeps, in_time)
    speedups = {} if best is None else {best: quick(found[best])}
    looked = [
        Shortened(pruning=name, harm=base.harm, losses=list(each.losses), keeps=each.keeps, speedup=speedups.get(name))
        for name, each in found.items()
    ]
    return [(speedup, found[name]) for name, speedup in speedups.items()], looked
