"""Records refuse what they do not know, and intervals say when they are clear of zero."""

from __future__ import annotations

import pytest

pytest.importorskip("pydantic")

from pydantic import ValidationError

from dynattn.lab.figures import Interval, Quality, Spread, TaskResult, spread
from dynattn.lab.timing import Spread as Quartiles


@pytest.mark.parametrize(
    ("low", "high", "clear"),
    [(0.1, 0.3, True), (-0.3, -0.1, True), (-0.1, 0.1, False), (0.0, 0.2, False), (None, None, False)],
)
def test_an_interval_is_clear_where_it_leaves_zero_out(low: float | None, high: float | None, clear: bool) -> None:
    assert Interval(mean=0.0, low=low, high=high).clear == clear


def test_unknown_fields_are_refused_and_known_ones_are_frozen() -> None:
    with pytest.raises(ValidationError, match="renamed"):
        Interval.model_validate({"mean": 1.0, "low": None, "high": None, "renamed": 1})
    with pytest.raises(ValidationError, match="frozen"):
        Interval(mean=1.0, low=None, high=None).mean = 2.0  # pyright: ignore[reportAttributeAccessIssue]


def test_a_method_is_found_by_its_name() -> None:
    results = [
        Quality(method=name, score=score, difference=None, agreement=None, worst=None, scores=[score])
        for name, score in (("sdpa", 1.0), ("nm-1-2", 0.5))
    ]
    found = TaskResult(
        name="t", title="T", metric="m", higher_is_better=True, data="d", items=["a"], length=3, seconds=0.1,
        results=results,
    )  # fmt: skip
    assert found.of("nm-1-2").score == 0.5
    assert spread(Quartiles(2.0, 1.0, 4.0)) == Spread(median=2.0, q1=1.0, q3=4.0)
