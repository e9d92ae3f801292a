"""What minutes allow: never more than they hold, never less than a claim needs."""

from __future__ import annotations

import pytest

from dynattn.lab.tune.plan import LEAST, MOST, cost, least_seconds, plan


@pytest.mark.parametrize("second", [False, True])
@pytest.mark.parametrize("forward", [0.01, 1.0, 10.0])
def test_a_plan_fits_the_time_and_takes_what_there_is(forward, second):
    least = least_seconds(forward, 0.4, second)
    assert plan(0.99 * least, forward, 0.4, second) is None
    for times in (1.01, 2, 10):
        found = plan(times * least, forward, 0.4, second)
        assert found is not None
        taken = cost(found.counts, forward, 0.4, second) + found.kernels
        assert taken <= times * least
        assert all(few <= many <= most for few, many, most in zip(LEAST, found.counts, MOST, strict=True))
    more, less = (plan(times * least, forward, 0.4, second) for times in (4, 2))
    assert more is not None
    assert less is not None
    assert more.counts.prove > less.counts.prove


def test_more_time_than_is_of_use_is_not_spent():
    found = plan(1e9, 1.0, 0.4, True)
    assert found is not None
    assert found.counts == MOST
