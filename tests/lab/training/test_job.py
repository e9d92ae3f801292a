"""The numbers of a run are refused before anything is trained."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("pydantic")

from dynattn.lab.training.job import Job

GIVEN: dict[str, Any] = {"method": "nm-1-2", "seed": 3, "steps": 5, "batch": 2, "learning_rate": 1e-4}


def job(**changes: Any) -> Job:
    return Job(**{**GIVEN, **changes})


@pytest.mark.parametrize("field", ["steps", "batch", "evaluate_every", "save_every"])
def test_counts_are_at_least_one(field: str) -> None:
    with pytest.raises(ValueError, match=f"Job: {field} must be at least 1: got 0; leave it out"):
        job(**{field: 0})


@pytest.mark.parametrize(
    "wrong", [{"learning_rate": 0.0}, {"weight_decay": -0.1}, {"warmup": 1.0}, {"warmup": -0.1}]
)  # fmt: skip
def test_rates_are_in_their_ranges(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"learning_rate must be positive, .* warmup in \[0, 1\)"):
        job(**wrong)


def test_a_method_must_be_one_and_names_the_run() -> None:
    with pytest.raises(ValueError, match="got 'nothing'"):
        job(method="nothing")
    assert job().name == "nm-1-2-seed3"
    assert job(method="sdpa").name == "sdpa-seed3"
