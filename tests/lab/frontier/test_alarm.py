"""What beats dense attention beyond chance gives an alarm; what is within chance gives none, however many cells."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("pydantic")
pytest.importorskip("scipy")

from dynattn.lab.frontier.alarm import ALARM, beating
from tests.lab.frontier.records import dense, entry, exam, grade, record, sheet


def _record(scores: np.ndarray, others: dict[str, np.ndarray], higher_is_better: bool = True):
    of = exam()
    grades = [dense(of, scores.tolist()), *(grade(of, entry(name, 0.5), x.tolist()) for name, x in others.items())]
    return record([sheet(of, len(scores), higher_is_better)], grades)


@pytest.mark.parametrize("higher_is_better", [True, False])
def test_a_wrong_baseline_is_found(higher_is_better: bool):
    """Dense attention was measured on other inputs: every method beats it; with the right one none does."""
    draw = np.random.default_rng(0)
    right = draw.normal(3, 0.3, 16)
    methods = {f"m{i}": right + draw.normal(0, 0.02, 16) for i in range(30)}
    assert beating(_record(right, methods, higher_is_better)) == []
    wrong = right + (-0.2 if higher_is_better else 0.2)
    found = beating(_record(wrong, methods, higher_is_better))
    assert len(found) == found[0].cells == 30
    assert found[0].gain == pytest.approx(0.2, abs=0.02)
    assert "m0-0.5 beats dense attention in retrieval 64, prefill, by 0." in str(found[0])
    assert "the baseline is likely to be wrong" in str(found[0])
    assert beating(_record(wrong, methods, not higher_is_better)) == []


def test_a_baseline_that_does_no_better_than_guessing_is_looked_at():
    """An exam that the report leaves out may be one with a wrong baseline."""
    draw = np.random.default_rng(1)
    guesses, right = draw.choice([0, 0.25], 16), draw.choice([0.75, 1.0], 16)
    of = exam()
    low = sheet(of, 16).model_copy(update={"chance": 0.25, "least": 0.5})
    found = record([low], [dense(of, guesses.tolist()), grade(of, entry("m"), right.tolist())])
    assert len(beating(found)) == 1


@pytest.mark.parametrize("kind", ["normal", "shares of answers", "rare"])
def test_right_records_give_an_alarm_less_often_than_one_in_a_hundred(kind: str):
    """Scores of methods as good as dense attention: 40 cells of 8 to 24 items, over and over."""
    draw = np.random.default_rng(2)
    alarms = 0
    for _ in range(25):
        items = int(draw.choice([8, 16, 24]))

        def scores(count: int) -> np.ndarray:
            if kind == "normal":
                return draw.normal(2, 0.5, (count, items))  # noqa: B023
            if kind == "rare":
                return 1.0 - (draw.random((count, items)) < 0.1)  # noqa: B023
            return draw.binomial(16, 0.7, (count, items)) / 16  # noqa: B023

        full, *others = scores(41)
        alarms += bool(beating(_record(full, {f"m{i}": x for i, x in enumerate(others)})))
    assert alarms <= 1  # at 1% of each of 40 cells, not corrected for their number, a third of the records would
    assert ALARM == 0.01


def test_few_items_that_all_gain_one_step_prove_nothing():
    full = np.full(8, 0.5)
    many = {f"m{i}": full + 1 / 16 * (i == 0) for i in range(100)}
    assert beating(_record(full, many)) == []
    assert len(beating(_record(np.zeros(40), {"m": np.full(40, 1.0)}))) == 1


def test_what_was_measured_without_dense_attention_is_no_gain():
    of = exam()
    assert beating(record([sheet(of)], [grade(of, entry("m"), [1.0] * 8)])) == []
    assert beating(record([], [])) == []
