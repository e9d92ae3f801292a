"""The fastest assignment within a budget of damage: a multiple-choice knapsack, solved along its Lagrangian path.

    choose c_u for every unit u:    min Σ_u seconds(u, c_u)    so that    Σ_u damage(u, c_u) <= budget

For each price λ of damage, ``min Σ (seconds + λ · damage)`` falls apart into units. As λ falls, each unit moves along
the lower convex hull of its options, and all moves together, sorted by seconds saved a damage, are the path. The last
point of it that keeps the budget is at most one move of one unit from the best there is.

Source: Dantzig, "Discrete-variable extremum problems", 1957; Sinha and Zoltners, "The multiple-choice knapsack
problem", 1979.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Move:
    """One unit takes another option.

    Attributes:
        unit: which.
        option: the new one.
        saved: seconds less than before, positive.
        harm: damage more than before, at least 0.
    """

    unit: int
    option: int
    saved: float
    harm: float


def path(seconds: np.ndarray, damage: np.ndarray) -> list[Move]:
    """All moves from the first option of every unit, the cheapest in damage first.

    Args:
        seconds: (units, options); the first option is where all begin. Infinite for options that a unit does not have.
        damage: (units, options), at least 0; 0 for the first option.

    Returns:
        The moves; each unit's own come in the order of its hull.
    """
    moves = [move for unit in range(len(seconds)) for move in _hull(unit, seconds[unit], damage[unit])]
    return sorted(moves, key=lambda move: move.harm / move.saved)  # stable: a unit's own stay in order


def within(moves: Sequence[Move], units: int, budget: float) -> np.ndarray:
    """The options at the last point of the path that keeps the budget.

    Args:
        moves: what :func:`path` gave.
        units: how many there are.
        budget: the budget of damage.

    Returns:
        (units,) int, the option of each.
    """
    return at(moves, units, reached(moves, budget))


def reached(moves: Sequence[Move], budget: float) -> int:
    """How many moves the budget allows."""
    spent = np.cumsum([move.harm for move in moves])
    return int(np.searchsorted(spent, budget * (1 + 1e-12), side="right"))


def at(moves: Sequence[Move], units: int, taken: int) -> np.ndarray:
    """The options after so many moves."""
    chosen = np.zeros(units, int)
    for move in moves[:taken]:
        chosen[move.unit] = move.option
    return chosen


def _hull(unit: int, seconds: np.ndarray, damage: np.ndarray) -> list[Move]:
    """From the first option: each move saves most for its damage of all that are left."""
    moves, now = [], 0
    while True:
        better = np.flatnonzero(seconds < seconds[now])
        if not len(better):
            return moves
        saved, harm = seconds[now] - seconds[better], np.maximum(damage[better] - damage[now], 0.0)
        order = np.lexsort((-saved, harm / saved))
        best = int(better[order[0]])
        moves.append(Move(unit, best, float(saved[order[0]]), float(harm[order[0]])))
        now = best
