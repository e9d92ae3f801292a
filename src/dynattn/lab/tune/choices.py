"""What each head can take, with its seconds and its harm, and the assignments along the path from dense on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from dynattn.lab.tune import solve
from dynattn.lab.tune.assignment import Assignment
from dynattn.lab.tune.sensitivity import Harm
from dynattn.lab.tune.solve import Move
from dynattn.lab.tune.times import Costs, fastest_dense, sdpa_seconds


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
    """Moves from dense attention on, each of one head.

    Attributes:
        moves: the moves.
        through: the method that all heads have on the way; None where the path is the knapsack's over all candidates.
        single: the moves after which all heads have it; -1 for none.
    """

    moves: list[solve.Move]
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
    def units(self) -> list[tuple[str, int]]:
        """Each module with each of its heads."""
        return [
            (module, head)
            for module, shape in self.costs.shapes.items()
            if module in self.harm
            for head in range(self.costs.heads[shape])
        ]

    @cached_property
    def _matrices(self) -> tuple[np.ndarray, np.ndarray]:
        """(units, options): seconds and harm; the first option is dense."""
        seconds = [[self._seconds(module, name) for name in self._options(module)] for module, _ in self.units]
        harm = [[0.0, *(self.harm[module][name][head] for name in self.names)] for module, head in self.units]
        return np.array(seconds), np.array(harm)

    @cached_property
    def path(self) -> Path:
        """The knapsack's path over all candidates, from dense attention on."""
        return Path(solve.path(*self._matrices))

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
        seconds, harm = self._matrices
        option = 1 + self.names.index(name)
        slower = seconds[:, option] >= seconds[:, 0]
        there = [
            Move(move.unit, option, move.saved, move.harm)
            for move in solve.path(seconds[:, [0, option]], harm[:, [0, option]])
        ]
        base = np.where(slower, 0, option)
        first = np.arange(len(base)), base
        on = solve.path(np.column_stack([seconds[first], seconds[:, 1:]]), np.column_stack([harm[first], harm[:, 1:]]))
        return Path([*there, *on], name, len(there))

    def point(self, moves: int, path: Path | None = None) -> Point:
        """The assignment after so many moves; methods that save less than it costs to split a call are left out."""
        path = self.path if path is None else path
        chosen = solve.at(path.moves, len(self.units), moves)
        heads: dict[str, list[str]] = {}
        for (module, _), option in zip(self.units, chosen, strict=True):
            heads.setdefault(module, []).append(self._options(module)[option])
        tidy = {module: self._tidy(module, names) for module, names in heads.items()}
        return self.priced(moves, tidy, path.through)

    def priced(self, moves: int, assignment: Assignment, through: str | None = None) -> Point:
        """An assignment with its harm and the seconds that it saves."""
        harm = sum(
            self.harm[module][name][head]
            for module, names in assignment.items()
            for head, name in enumerate(names)
            if name in self.names
        )
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

    def _tidy(self, module: str, heads: Sequence[str]) -> tuple[str, ...]:
        dense, costs = self._options(module)[0], self._of(module)
        split, heads = self.costs.split[self.costs.shapes[module]], list(heads)
        saved = {
            name: heads.count(name) * (costs[dense] - costs[name]) / len(heads) for name in set(heads) if name != dense
        }
        for name in sorted(saved, key=lambda name: (saved[name], name)):
            if len(set(heads)) > 1 and saved[name] <= split:
                heads = [dense if each == name else each for each in heads]
        return tuple(heads)

    def _call(self, module: str, heads: Sequence[str]) -> float:
        costs = self._of(module)
        split = self.costs.split[self.costs.shapes[module]]
        return sum(costs[name] for name in heads) / len(heads) + split * (len(set(heads)) - 1)

    def _seconds(self, module: str, name: str) -> float:
        """The seconds of one head."""
        return self._of(module).get(name, np.inf) / self.costs.heads[self.costs.shapes[module]]

    def _options(self, module: str) -> tuple[str, ...]:
        return (fastest_dense(self._of(module)), *self.names)

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
        and any(each[name] < 0.95 * each[fastest_dense(each)] for each in costs.seconds)
    ]
    return tuple(faster[:most])
