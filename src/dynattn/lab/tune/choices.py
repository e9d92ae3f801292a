"""What each head can take, with its seconds and its harm, and the assignments along the path from dense on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from dynattn.lab.tune import solve
from dynattn.lab.tune.assignment import Assignment
from dynattn.lab.tune.sensitivity import Harm
from dynattn.lab.tune.times import Costs, fastest_dense, sdpa_seconds


@dataclass(frozen=True)
class Point:
    """An assignment on the path.

    Attributes:
        moves: how many moves the path has made.
        assignment: the method of each head.
        harm: the predicted harm, in the units of :mod:`dynattn.lab.tune.sensitivity`.
        saved: how many seconds a forward is predicted to save against PyTorch's dense attention.
    """

    moves: int
    assignment: Assignment
    harm: float
    saved: float


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
    def moves(self) -> list[solve.Move]:
        """The moves along the path, from dense attention on."""
        seconds = np.array(
            [[self._seconds(module, name) for name in self._options(module)] for module, _ in self.units]
        )
        harm = np.array([
            [0.0, *(self.harm[module][name][head] for name in self.names)] for module, head in self.units
        ])  # fmt: skip
        return solve.path(seconds, harm)

    def point(self, moves: int) -> Point:
        """The assignment after so many moves; methods that save less than it costs to split a call are left out."""
        chosen = solve.at(self.moves, len(self.units), moves)
        heads: dict[str, list[str]] = {}
        for (module, _), option in zip(self.units, chosen, strict=True):
            heads.setdefault(module, []).append(self._options(module)[option])
        return self.priced(moves, {module: self._tidy(module, names) for module, names in heads.items()})

    def priced(self, moves: int, assignment: Assignment) -> Point:
        """An assignment with its harm and the seconds that it saves."""
        harm = sum(
            self.harm[module][name][head]
            for module, names in assignment.items()
            for head, name in enumerate(names)
            if name in self.names
        )
        seconds = {module: self._call(module, names) for module, names in assignment.items()}
        saved = sum(sdpa_seconds(self._of(module)) - took for module, took in seconds.items())
        return Point(moves, assignment, harm, saved)

    def within(self, harm: float) -> Point:
        """The last point of the path that harms no more."""
        return self.point(solve.reached(self.moves, harm))

    def everywhere(self, name: str) -> Point:
        """One method for all heads."""
        heads = {module: (name,) * self.costs.heads[self.costs.shapes[module]] for module in self.harm}
        return self.priced(-1, heads)

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
