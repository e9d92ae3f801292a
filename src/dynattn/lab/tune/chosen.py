"""What the search chose, kept before the first proof, so that a run that goes on proves the same."""

from __future__ import annotations

from dataclasses import asdict
from typing import NamedTuple

from dynattn.lab.tune.choices import Point
from dynattn.lab.tune.search import Measured
from dynattn.lab.tune.store import Store

_NAME = "chosen"


class Chosen(NamedTuple):
    """A choice, and after how much it was made.

    Attributes:
        best: the assignment.
        searched: assignments that were measured before methods that shorten the sequence were looked at.
        looks: assignments that were measured in all.
    """

    best: Measured
    searched: int
    looks: int


def keep(store: Store, choice: Chosen) -> None:
    """Write a choice."""
    store.put(_NAME, {**choice._asdict(), "best": asdict(choice.best)})


def kept(store: Store) -> Chosen | None:
    """The choice that was made before; None where none was."""
    found = store.get(_NAME)
    if found is None:
        return None
    best = found["best"]
    point = Point(**{**best["point"], "assignment": {m: tuple(its) for m, its in best["point"]["assignment"].items()}})
    measured = Measured(**{**best, "point": point, "losses": tuple(best["losses"]), "worst": tuple(best["worst"])})
    return Chosen(measured, found["searched"], found["looks"])
