"""The solver's path against every assignment there is."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from dynattn.lab.tune import solve


def _best(seconds: np.ndarray, damage: np.ndarray, budget: float) -> float:
    """The least seconds of all assignments that keep the budget."""
    units = range(len(seconds))
    return min(
        sum(seconds[u, c] for u, c in zip(units, chosen, strict=True))
        for chosen in product(range(seconds.shape[1]), repeat=len(seconds))
        if sum(damage[u, c] for u, c in zip(units, chosen, strict=True)) <= budget + 1e-12
    )


def _drawn(seed: int, units: int = 5, options: int = 4) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(seed)
    seconds, damage = draw.random((units, options)), draw.random((units, options)) ** 3
    damage[:, 0] = 0
    return seconds, damage


@pytest.mark.parametrize("seed", range(20))
def test_no_assignment_is_faster_by_more_than_one_move(seed):
    seconds, damage = _drawn(seed)
    moves = solve.path(seconds, damage)
    for budget in (0.0, 0.05, 0.3, 1.0, 3.0):
        chosen = solve.within(moves, len(seconds), budget)
        units = np.arange(len(seconds))
        assert damage[units, chosen].sum() <= budget + 1e-9
        slack = max((move.saved for move in moves), default=0.0)
        assert seconds[units, chosen].sum() <= _best(seconds, damage, budget) + slack + 1e-9


@pytest.mark.parametrize("seed", range(20))
def test_points_of_the_path_are_the_best_for_what_they_spend(seed):
    seconds, damage = _drawn(seed)
    moves, units = solve.path(seconds, damage), np.arange(len(seconds))
    for taken in range(len(moves) + 1):
        chosen = solve.at(moves, len(seconds), taken)
        spent = damage[units, chosen].sum()
        assert seconds[units, chosen].sum() == pytest.approx(_best(seconds, damage, spent))


def test_the_whole_path_ends_with_the_fastest_of_each_unit():
    seconds, damage = _drawn(0)
    moves = solve.path(seconds, damage)
    assert list(solve.at(moves, len(seconds), len(moves))) == list(seconds.argmin(1))


def test_options_that_a_unit_does_not_have_are_never_taken():
    seconds = np.array([[1.0, np.inf, 0.5], [1.0, np.inf, np.inf]])
    damage = np.array([[0.0, 0.0, 1.0], [0.0, 0.0, 0.0]])
    moves = solve.path(seconds, damage)
    assert [(move.unit, move.option) for move in moves] == [(0, 2)]
    assert solve.path(np.ones((3, 2)), np.zeros((3, 2))) == []  # nothing is faster
