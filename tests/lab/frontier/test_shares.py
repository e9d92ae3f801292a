"""Shares of quality and leads, with their bounds."""

from __future__ import annotations

import math

import numpy as np
import pytest

pytest.importorskip("pydantic")
pytest.importorskip("scipy")

from dynattn.lab.figures import Interval
from dynattn.lab.frontier.shares import lead, retained, together

DRAW = np.random.default_rng(0)
FULL = DRAW.uniform(0.4, 0.6, 40)


def test_a_score_is_retained_by_its_ratio_and_a_likelihood_by_its_probability():
    found = retained(FULL * 0.9, FULL, True)  # pyright: ignore[reportArgumentType]
    assert found.mean == pytest.approx(0.9)
    assert found.low is not None
    assert found.high is not None
    assert 0.89 < found.low < 0.9 < found.high < 0.91
    lost = retained(FULL + math.log(2), FULL, False)  # pyright: ignore[reportArgumentType]
    assert lost.mean == pytest.approx(0.5)
    noisy = retained(FULL + 0.1 * DRAW.standard_normal(40), FULL, False)  # pyright: ignore[reportArgumentType]
    assert noisy.low is not None
    assert noisy.high is not None
    assert noisy.low < noisy.mean < noisy.high


def test_a_share_has_no_bounds_where_there_are_too_few_items():
    found = retained([0.5, 0.4], [0.5, 0.5], True)
    assert (found.mean, found.low, found.high) == (pytest.approx(0.9), None, None)


@pytest.mark.parametrize("higher_is_better", [True, False])
def test_a_lead_is_the_difference_of_two_shares(higher_is_better: bool):
    mine, other = FULL + 0.02 * DRAW.standard_normal(40), FULL + 0.05
    found = lead(mine, other, FULL, higher_is_better)  # pyright: ignore[reportArgumentType]
    shares = [retained(x, FULL, higher_is_better).mean for x in (mine, other)]  # pyright: ignore[reportArgumentType]
    assert found.mean == pytest.approx(shares[0] - shares[1])
    assert (found.mean > 0) == (not higher_is_better)
    assert found.clear


def test_means_of_exams_have_bounds_that_hold_when_all_err_together():
    found = together([Interval(mean=0.9, low=0.8, high=1.0), Interval(mean=0.7, low=0.6, high=0.8)])
    assert (found.mean, found.low, found.high) == pytest.approx((0.8, 0.7, 0.9))
    assert together([found, Interval(mean=1, low=None, high=None)]).low is None
