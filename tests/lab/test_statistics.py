"""Paired differences and their intervals."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("pydantic")
pytest.importorskip("scipy")

from dynattn.lab.statistics import at_chance, interval, luck, quality
from dynattn.lab.tasks import Outcome, Prepared


def _data(count: int) -> Prepared:
    return Prepared(tuple(f"item {i}" for i in range(count)), 1, (), 0, "", None)


def test_interval_is_the_normal_one_for_many_normal_differences():
    draw = np.random.default_rng(0)
    differences = draw.normal(0.3, 2.0, 1000)
    found = interval(differences)
    half = 1.96 * differences.std() / np.sqrt(1000)
    assert found.mean == pytest.approx(differences.mean())
    assert found.low is not None
    assert found.high is not None
    assert found.mean - found.low == pytest.approx(half, rel=0.05)
    assert found.high - found.mean == pytest.approx(half, rel=0.05)


def test_interval_covers_the_truth_about_as_often_as_it_says():
    draw = np.random.default_rng(1)
    hits = 0
    for trial in range(200):
        found = interval(draw.exponential(1.0, 60) - 1.0, seed=trial)  # skewed, of mean 0
        hits += (found.low or 0) <= 0 <= (found.high or 0)
    # binomial with p near 0.93 (percentile intervals of 60 skewed items are a little short): 3 sd is 11 of 200
    assert 175 <= hits <= 198


def test_interval_of_equal_differences_is_a_point_and_of_few_has_no_bounds():
    same = interval(np.full(8, 0.25))
    assert (same.low, same.high) == (0.25, 0.25)
    assert same.clear
    few = interval(np.array([0.1, 0.2, 0.3]))
    assert (few.low, few.high) == (None, None)
    assert few.mean == pytest.approx(0.2)
    assert not few.clear


@pytest.mark.parametrize(("higher_is_better", "item", "difference"), [(True, "item 1", -0.5), (False, "item 3", 0.3)])
def test_worst_item_is_the_one_most_harmed(higher_is_better: bool, item: str, difference: float):
    dense = Outcome(np.array([1.0, 1.0, 1.0, 1.0]), None)
    sparse = Outcome(np.array([1.0, 0.5, 0.9, 1.3]), None)
    found = quality("nm-1-2", sparse, dense, _data(4), higher_is_better)
    assert found.worst is not None
    assert found.worst.item == item
    assert found.worst.difference == pytest.approx(difference)
    assert found.difference is not None
    assert found.difference.mean == pytest.approx(-0.075)


def test_nothing_worse_means_no_worst_item():
    dense, sparse = Outcome(np.zeros(4), None), Outcome(np.ones(4), None)
    assert quality("nm-1-2", sparse, dense, _data(4), True).worst is None


def test_agreement_is_the_cosine_and_stands_in_for_scores():
    dense = Outcome(None, np.array([[1.0, 0.0], [0.0, 2.0]]))
    sparse = Outcome(None, np.array([[1.0, 1.0], [0.0, 1.0]]))
    found = quality("nm-1-2", sparse, dense, _data(2), True)
    assert found.scores == pytest.approx([np.sqrt(0.5), 1.0])
    assert found.agreement == pytest.approx((np.sqrt(0.5) + 1) / 2)
    assert found.difference is not None
    assert found.difference.mean == pytest.approx((np.sqrt(0.5) - 1) / 2)
    assert quality("sdpa", dense, dense, _data(2), True).difference is None


def test_an_outcome_of_nothing_is_refused():
    nothing = Outcome(None, None)
    with pytest.raises(ValueError, match="scores or outputs"):
        quality("nm-1-2", nothing, nothing, _data(1), True)


@pytest.mark.parametrize(
    ("scores", "chance", "higher_is_better", "expected"),
    [
        ((0.9, 0.8, 0.9, 0.7, 0.8), 0.5, True, False),
        ((0.4, 0.8, 0.3, 0.7, 0.4), 0.5, True, True),
        ((0.1, 0.1, 0.1, 0.1), 0.5, True, True),
        ((1.0, 1.2, 0.9, 1.1), 4.0, False, False),
        ((4.1, 3.9, 4.2, 3.9), 4.0, False, True),
        ((0.9,), 0.5, True, False),
        ((0.5,), 0.5, True, True),
        ((0.9, float("nan"), 0.9, 0.9), None, True, True),
        ((0.0, 0.0), None, True, False),
    ],
)
def test_scores_are_at_chance_where_their_interval_does_not_leave_it_behind(scores, chance, higher_is_better, expected):
    assert at_chance(scores, chance, higher_is_better) is expected


def test_an_interval_of_what_is_not_finite_has_no_bounds():
    found = interval(np.array([0.1, np.inf, 0.2, 0.3, 0.1]))
    assert (found.low, found.high) == (None, None)


def test_luck_is_students_and_as_likely_as_it_says():
    from scipy.stats import ttest_1samp

    draw = np.random.default_rng(5)
    for mean in (0.5, 0.1):
        gains = draw.normal(0, 1.0, 20)
        gains += mean - gains.mean()
        tested: Any = ttest_1samp(gains, 0, alternative="greater")
        assert luck(gains) == pytest.approx(tested.pvalue)
    found = np.array([luck(draw.normal(0, 1.0, 8)) for _ in range(400)])
    assert 8 <= (found < 0.05).sum() <= 34  # 20 of 400, give or take three standard deviations


def test_a_loss_is_no_luck_and_what_cannot_be_judged_is():
    for gains in ([-1.0, -1.1, -0.9], [0.0, 0.0, 0.0], [5.0], [1.0, np.nan, 1.0], [1.0, np.inf]):
        assert luck(np.array(gains)) == 1.0


def test_scores_that_move_in_steps_have_some_spread():
    same = np.full(8, 1 / 16)
    assert luck(same) == 0.0
    assert luck(same, 1 / 16) == pytest.approx(3.9e-4, rel=0.02)  # t of 2 · √8 with 7 degrees of freedom
    spread = np.random.default_rng(6).normal(0.2, 1.0, 30)
    assert luck(spread, 1e-6) == luck(spread)
