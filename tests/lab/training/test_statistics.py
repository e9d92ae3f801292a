"""Intervals over seeds and items: textbook cases, and how often they cover the truth."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("scipy")

from scipy.stats import t

from dynattn.lab.statistics import interval
from dynattn.lab.training.statistics import contrast


def _half(found) -> float:
    assert found.low is not None
    assert found.high is not None
    assert found.high - found.mean == pytest.approx(found.mean - found.low)
    return found.high - found.mean


def test_where_only_the_seeds_differ_it_is_students_interval_over_the_seeds():
    seeds = np.array([0.1, 0.4, 0.7])
    found = contrast(np.repeat(seeds[:, None], 50, axis=1))
    assert found.mean == pytest.approx(0.4)
    assert found.degrees == pytest.approx(2)
    assert _half(found) == pytest.approx(t.ppf(0.975, 2) * seeds.std(ddof=1) / 3**0.5)
    assert found.by_seed == pytest.approx(seeds)
    assert found.over == "seeds and items"


def test_where_only_the_items_differ_it_is_students_interval_over_the_items():
    items = np.random.default_rng(0).normal(size=40)
    found = contrast(np.repeat(items[None], 3, axis=0))
    assert found.degrees == pytest.approx(39)
    assert _half(found) == pytest.approx(t.ppf(0.975, 39) * items.std(ddof=1) / 40**0.5)


def test_one_seed_gives_the_bootstrap_over_the_items_and_says_so():
    items = np.random.default_rng(0).normal(size=40)
    found, expected = contrast(items[None]), interval(items)
    assert (found.mean, found.low, found.high) == (expected.mean, expected.low, expected.high)
    assert (found.over, found.degrees) == ("items", None)


def test_where_nothing_differs_the_interval_is_a_point():
    found = contrast(np.full((3, 10), 0.25))
    assert (found.mean, found.low, found.high) == (0.25, 0.25, 0.25)
    assert not contrast(np.zeros((3, 10))).clear


@pytest.mark.parametrize(
    ("seed", "item", "rest"), [(0.0, 1.0, 0.3), (0.1, 0.3, 0.5), (0.3, 0.0, 1.0), (0.05, 0.3, 0.3)]
)
def test_intervals_of_three_seeds_cover_the_truth_as_often_as_they_claim(seed: float, item: float, rest: float):
    draw = np.random.default_rng(1)
    tables = (
        seed * draw.normal(size=(1500, 3, 1))
        + item * draw.normal(size=(1500, 1, 60))
        + rest * draw.normal(size=(1500, 3, 60))
    )
    found = [contrast(table) for table in tables]
    covered = np.mean([c.low <= 0 <= c.high for c in found if c.low is not None and c.high is not None])
    assert 0.935 < covered <= 1  # never less than claimed, up to simulation error; more where a variance is near zero
    if seed >= 0.1:  # the items alone would claim too much
        means = tables.mean(1)
        narrow = 1.96 * means.std(1, ddof=1) / 60**0.5
        assert np.mean(np.abs(means.mean(1)) <= narrow) < 0.85
