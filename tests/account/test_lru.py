"""The cache's misses, against a list that is searched for every read."""

from __future__ import annotations

import numpy as np
import pytest

from dynattn.account.lru import misses


def by_list(reads: list[np.ndarray], capacity: int) -> int:
    held: list[int] = []
    missed = 0
    for row in np.concatenate(reads).tolist():
        if row in held:
            held.remove(row)
        else:
            missed += 1
        held.append(row)
        del held[: max(0, len(held) - capacity)]
    return missed


@pytest.mark.parametrize("capacity", [1, 2, 3, 5, 8, 20])
def test_misses_are_those_of_a_list(capacity: int) -> None:
    draw = np.random.default_rng(capacity)
    reads = [draw.permutation(12)[: draw.integers(1, 7)] for _ in range(40)]
    assert misses(iter(reads), capacity) == by_list(reads, capacity)


def test_a_row_that_is_read_again_stays_and_nothing_read_misses_nothing() -> None:
    first_again = [np.array([1]), np.array([2]), np.array([1]), np.array([3]), np.array([1])]
    assert misses(first_again, 2) == 3  # 3 replaces 2; with first-in-first-out it would replace 1
    assert misses([], 4) == 0
    assert misses([np.array([1]), np.array([1])], 0) == 2
