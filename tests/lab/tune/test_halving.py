"""How the strongest settings that keep the limits are found in few measurements."""

from __future__ import annotations

import pytest

from dynattn.lab.tune.halving import strongest
from dynattn.lab.tune.shorten import MEASURED

NAMES = tuple("abcdefg")


@pytest.mark.parametrize("limit", range(8))
def test_the_strongest_that_keeps_the_limits_is_found_in_few_measurements(limit):
    seen = []

    def keeps(names):
        seen.extend(names)
        return {name: NAMES.index(name) < limit for name in names}

    assert strongest([NAMES], keeps, lambda: True) == [NAMES[limit - 1] if limit else None]
    assert len(seen) == MEASURED


def test_families_are_measured_together():
    rounds = []

    def keeps(names):
        rounds.append(list(names))
        return {name: name in ("a", "b", "x") for name in names}

    assert strongest([NAMES, ("x", "y"), ()], keeps, lambda: True) == ["b", "x", None]
    assert rounds == [["d", "y"], ["b", "x"], ["c"]]


def test_without_time_nothing_is_measured_and_what_is_known_stays():
    assert strongest([NAMES], lambda names: pytest.fail(str(names)), lambda: False) == [None]
    times = iter([True, False])
    assert strongest([NAMES], lambda names: dict.fromkeys(names, True), lambda: next(times)) == ["d"]
