"""What each head can take, with its seconds and its harm, and the assignments along the path from dense on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from dynattn.lab.tune import solve
from dynattn.lab.tune.assignment import Assignment
from dynattn.lab.tune.candidates import DENSE
from dynattn.lab.tune.sensitivity import Harm
from dynattn.lab.tune.times import Costs, sdpa_seconds

Heads = tuple[str, ...]
"""The method of each head of a module."""


@dataclass(frozen=True)
class Point:
    """An assignment on the path.

    Attributes:
        moves: how many moves the path has made.
        assignment: the method of each head.
        harm: the predicted harm, in the units of :mod:`dynattn.lab.tune.sensitivity`.
        saved: how many seconds a forward is predicted to save against PyTorch's dense attention.
        through: the method for all heads that the path goes through; None for the path that goes through none.
    """

    moves: int
    assignment: Assignment
    harm: float
    saved: float
    through: str | None = None


@dataclass(frozen=True)
class Path:
    """Moves from dense attention on, each of one module.

    Attributes:
        moves: the moves.
        options: for each module, the methods of its heads that a move may name; the first is dense attention.
        through: the method that all heads have on the way; None where the path is the knapsack's over all candidates.
        single: the moves after which all heads have it; -1 for none.
    """

    moves: list[solve.Move]
    options: list[list[Heads]]
    through: str | None = None
    single: int = -1

    def reached(self, harm: float) -> int:
        """How many moves harm no more."""
        return solve.reached(self.moves, harm)

    @property
    def harm(self) -> float:
        """Harm at the end."""
        return float(sum(move.harm for move in self.moves))


@dataclass(frozen=True)
class Choices:
    """All that the solver needs.

    Args:
        costs: the seconds by shape.
        harm: the harm of each candidate for each head of each module.
        names: the candidates that may be chosen.
    """

    costs: Costs
    harm: Harm
    names: tuple[str, ...]

    @cached_property
    def modules(self) -> list[str]:
        """The modules whose heads are chosen for."""
        return [module for module in self.costs.shapes if module in self.harm]

    @cached_property
    def path(self) -> Path:
        """The knapsack's path over all candidates, from dense attention on."""
        options = [self._from(module, DENSE, self.names) for module in self.modules]
        return Path(self._moves(options), options)

    @property
    def moves(self) -> list[solve.Move]:
        """Its moves."""
        return self.path.moves

    def through(self, name: str) -> Path:
        """From dense attention to one method for all heads, and on from there to faster ones.

        Harm tells heads apart better than methods that err in unlike ways. Every point of this path is of a kind with
        the method, whose loss can be measured, so that an assignment that is held against it is not told by harm alone.

        Args:
            name: a candidate that is faster than dense attention for some head.
        """
        there = [self._from(module, DENSE, (name,)) for module in self.modules]
        first = self._moves(there)
        reached = [its[option] for its, option in zip(there, solve.at(first, len(there), len(first)), strict=True)]
        on = [self._from(module, its[0], self.names) for module, its in zip(self.modules, reached, strict=True)]
        options = [list(dict.fromkeys([*a, *b])) for a, b in zip(there, on, strict=True)]
        second = [
            replace(move, option=options[move.unit].index(on[move.unit][move.option])) for move in self._moves(on)
        ]
        return Path([*first, *second], options, name, len(first))

    def point(self, moves: int, path: Path | None = None) -> Point:
        """The assignment after so many moves."""
        path = self.path if path is None else path
        chosen = solve.at(path.moves, len(self.modules), moves)
        heads = {module: its[option] for module, its, option in zip(self.modules, path.options, chosen, strict=True)}
        return self.priced(moves, heads, path.through)

    def priced(self, moves: int, assignment: Assignment, through: str | None = None) -> Point:
        """An assignment with its harm and the seconds that it saves."""
        harm = sum(self._harms(module, names) for module, names in assignment.items())
        seconds = {module: self._call(module, names) for module, names in assignment.items()}
        saved = sum(sdpa_seconds(self._of(module)) - took for module, took in seconds.items())
        return Point(moves, assignment, harm, saved, through)

    def within(self, harm: float, path: Path | None = None) -> Point:
        """The last point of a path that harms no more."""
        path = self.path if path is None else path
        return self.point(path.reached(harm), path)

    def milder(self, point: Point, share: float) -> Point:
        """The point of the same path with so large a share of the harm."""
        path = None if point.through is None else self.through(point.through)
        return self.within(point.harm * share, path)

    @cached_property
    def singles(self) -> list[list[str]]:
        """Methods for all heads that are worth looking at, by family: each harms less than all faster ones of it.

        The least harmful comes first, among families too. Harm does not tell families apart well.
        """
        families: dict[str, list[tuple[Point, str]]] = {}
        least = max(0.0, self.point(0).saved)
        for point, name in sorted(
            ((self.everywhere(name), name) for name in self.names), key=lambda each: each[0].harm
        ):
            found = families.setdefault(name.split("-")[0], [])
            if point.saved > max((other.saved for other, _ in found), default=least):
                found.append((point, name))
        return [[name for _, name in found] for found in families.values() if found]

    def everywhere(self, name: str) -> Point:
        """One method for all heads."""
        heads = {module: (name,) * self.costs.heads[self.costs.shapes[module]] for module in self.harm}
        return self.priced(-1, heads, name)

    @cached_property
    def most(self) -> Point:
        """The last point of the path, which is the fastest of all."""
        return self.point(len(self.moves))

    def _from(self, module: str, base: str, names: Sequence[str]) -> list[Heads]:
        """What a module's heads may be given, beginning with one method for all of them: others head by head, as harm
        a second saved tells, and each of the others for all heads. Where a call that is split takes longer than it
        saves, these are what pays."""
        many, every = self.costs.heads[self.costs.shapes[module]], (base, *names)
        costs = self._of(module)
        seconds = np.tile([costs.get(name, np.inf) / many for name in every], (many, 1))
        harm = np.array([[self._harm(module, name, head) for name in every] for head in range(many)])
        steps = solve.path(seconds, harm)
        mixed = (solve.at(steps, many, taken) for taken in range(len(steps) + 1))
        found = [tuple(every[option] for option in chosen) for chosen in mixed]
        return list(dict.fromkeys([*found, *((name,) * many for name in names)]))

    def _moves(self, options: Sequence[Sequence[Heads]]) -> list[solve.Move]:
        """The knapsack's moves over what each module may be given."""
        most = max(map(len, options), default=0)
        seconds, harm = np.full((2, len(options), most), np.inf)
        for unit, (module, its) in enumerate(zip(self.modules, options, strict=True)):
            seconds[unit, : len(its)] = [self._call(module, heads) for heads in its]
            harm[unit, : len(its)] = [self._harms(module, heads) for heads in its]
        return solve.path(seconds, harm)

    def _call(self, module: str, heads: Sequence[str]) -> float:
        """The seconds of a call."""
        costs = self._of(module)
        split = self.costs.split[self.costs.shapes[module]]
        return sum(costs.get(name, np.inf) for name in heads) / len(heads) + split * (len(set(heads)) - 1)

    def _harms(self, module: str, heads: Sequence[str]) -> float:
        return sum(self._harm(module, name, head) for head, name in enumerate(heads))

    def _harm(self, module: str, name: str, head: int) -> float:
        return self.harm[module][name][head] if name in self.names else 0.0

    def _of(self, module: str) -> Mapping[str, float]:
        return self.costs.seconds[self.costs.shapes[module]]


def worth(costs: Costs, names: Sequence[str], most: int) -> tuple[str, ...]:
    """The candidates that are faster than dense attention for some shape; no more than are asked for.

    Args:
        costs: the costs of all candidates.
        names: the candidates, in the order in which they are preferred.
        most: how many to return at the most.
    """
    faster = [
        name
        for name in names
        if all(name in each for each in costs.seconds)
        and any(each[name] < 0.95 * each[DENSE] for each in costs.seconds)
    ]
    return tuple(faster[:most])
