"""The fastest by the model's clock: an assignment, a method of the whole model, or both together."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from dynattn.lab.tune.choices import Choices, Point
from dynattn.lab.tune.halving import strongest
from dynattn.lab.tune.results import WholeModel
from dynattn.lab.tune.search import Measured, Search
from dynattn.lab.tune.whole import split

_ROOM = 0.5  # of the harm, where there is a method of the whole model as well


def find(
    families: Sequence[Sequence[str]], choices: Choices, search: Search, best: Measured | None, forward: float,
    quick: Callable[[Measured], float], in_time: Callable[[], bool], advance: Callable[[], None],
) -> tuple[Measured | None, list[WholeModel]]:  # fmt: skip
    """What was found so far, or something faster with a method of the whole model; and all that was looked at.

    Args:
        families: settings of methods of the whole model, of each family the mildest first.
        choices: the choices, with the path.
        search: measures.
        best: what was found so far; None for nothing.
        forward: seconds of the dense model's.
        quick: the speed-up of the whole model, measured.
        in_time: whether another one may be measured.
        advance: called after each.
    """
    looked: list[WholeModel] = []

    def of(names: Sequence[str], base: Point) -> list[tuple[float, Measured]]:
        found, its = _strongest(names, base, search, quick, in_time, advance)
        looked.extend(its)
        return found

    raced = [] if best is None else [(quick(best), best)]
    for names in families:
        raced += of(names, choices.point(0))
    alone = [each for each in raced if each[1].whole]
    if alone and best is not None:
        name = max(alone, key=lambda each: each[0])[1].whole
        names = next(names for names in families if name in names)
        raced += of(names, choices.milder(best.point, _ROOM))
    speedup, found = max(raced, key=lambda each: each[0], default=(1.0, None))
    if found is None or speedup <= 1:
        return best, looked
    return replace(found, point=replace(found.point, saved=forward * (1 - 1 / speedup))), looked


def _strongest(
    names: Sequence[str], base: Point, search: Search, quick: Callable[[Measured], float],
    in_time: Callable[[], bool], advance: Callable[[], None],
) -> tuple[list[tuple[float, Measured]], list[WholeModel]]:  # fmt: skip
    """The strongest of a family's settings that keeps the limits, with its speed-up; empty where none does."""
    found: dict[str, Measured] = {}

    def keeps(asked: Sequence[str]) -> Mapping[str, bool]:
        for name in asked:
            found[name] = search.lost(base, name, lambda: None)
            advance()
        return {name: found[name].keeps for name in asked}

    (best,) = strongest([names], keeps, in_time)
    speedups = {} if best is None else {best: quick(found[best])}
    looked = [
        WholeModel(
            harm=base.harm, losses=list(each.losses), keeps=each.keeps, speedup=speedups.get(name), **split(name)
        )
        for name, each in found.items()
    ]  # fmt: skip
    return [(speedup, found[name]) for name, speedup in speedups.items()], looked
