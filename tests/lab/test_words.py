"""Verdicts in words."""

from __future__ import annotations

import math

import pytest

pytest.importorskip("markupsafe")

pytest.importorskip("jinja2")
pytest.importorskip("matplotlib")

from dynattn.lab.figures import Interval, Quality, TaskResult
from dynattn.lab.words import NO_CONCLUSION, NOT_FINITE, interval, label, percent, reading, signed, verdict

CLEAR = Interval(mean=-0.2, low=-0.3, high=-0.1)


def _task(scores: list[float], chance: float | None) -> TaskResult:
    dense = Quality(
        method="sdpa", score=sum(scores) / len(scores), difference=None, agreement=None, worst=None, scores=scores
    )
    return TaskResult(
        name="retrieval", title="", metric="MRR@10", higher_is_better=True, data="", items=["a"] * len(scores),
        length=8, seconds=0.0, results=[dense], chance=chance,
    )  # fmt: skip


def _method(difference: Interval) -> Quality:
    return Quality(method="x", score=0.5, difference=difference, agreement=None, worst=None, scores=[0.5] * 5)


def test_what_is_not_finite_is_said():
    lost = Interval(mean=math.nan, low=None, high=None)
    assert reading(lost, True) == interval(lost) == NOT_FINITE
    assert reading(Interval(mean=math.inf, low=None, high=None), False) == NOT_FINITE


def test_no_verdict_where_dense_attention_guesses():
    assert verdict(_task([0.9, 0.8, 0.9, 0.8, 0.9], 0.1), _method(CLEAR)) == "worse"
    assert verdict(_task([0.9, 0.8, 0.9, 0.8, 0.9], None), _method(CLEAR)) == "worse"
    assert verdict(_task([0.1, 0.2, 0.1, 0.0, 0.1], 0.1), _method(CLEAR)) == NO_CONCLUSION


def test_labels_and_signs():
    assert label("nm-1-2-w16-s1") == "1:2, window 16, 1 sink"
    assert label("nm-2-4-w64-s4") == "2:4, window 64, 4 sinks"
    assert label("nm-1-2-x16-w64") == "1:2, stride 16, window 64"
    assert label("nm-1-2") == "1:2"
    assert (signed(-0.00126), signed(0.5, 1), signed(-0.00001)) == ("−0.0013", "+0.5", "0.0000")
    assert interval(None) == "–"
    assert percent(Interval(mean=0.9701, low=0.951, high=0.99)) == "97.0% [95.1%, 99.0%]"
    assert percent(Interval(mean=0.97, low=None, high=None)) == "97.0%"
