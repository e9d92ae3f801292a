"""The largest sparsity without significant loss, on scores made up so that it is known."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("pydantic")
pytest.importorskip("scipy")

from dynattn.lab.frontier.cell import Phase
from dynattn.lab.frontier.limits import limits
from dynattn.lab.frontier.results import Frontier
from dynattn.lab.frontier.summary import contenders
from tests.lab.frontier.records import dense, entry, exam, grade, record, sheet

FULL = np.random.default_rng(0).uniform(0.6, 0.9, 40)
LOST, SAME, LUCKY = 0.9, 1.0, 1.02  # what is retained, give or take little


def _record(retained: dict[float, float], items: int = 40, higher_is_better: bool = True, **fields) -> Frontier:
    """One family, by budget what it retains; it keeps its budgets exactly, of 100 pairs."""
    of = exam(**fields)
    draw, full = np.random.default_rng(1), FULL[:items]
    grades = [dense(of, full.tolist())]
    for budget, share in retained.items():
        scores = full * share if higher_is_better else full - np.log(share)
        noisy = scores + 0.01 * draw.standard_normal(items)
        grades.append(grade(of, entry("block top-k", budget), noisy.tolist(), 100 * budget))
    return record([sheet(of, items, higher_is_better)], grades)


def _limit(found: Frontier, phase: Phase = "prefill"):
    ((one,),) = [list(by_exam.values()) for by_exam in limits(contenders(found, phase)).values()]
    return one


@pytest.mark.parametrize("higher_is_better", [True, False])
@pytest.mark.parametrize(
    ("retained", "sparsity", "sparser"),
    [
        ({0.5: SAME, 0.2: SAME, 0.1: LOST, 0.05: LOST}, 0.8, True),
        ({0.5: SAME, 0.2: SAME, 0.1: SAME, 0.05: SAME}, 0.95, False),
        ({0.5: LOST, 0.2: LOST}, None, True),
        ({0.5: LUCKY, 0.2: SAME, 0.1: LOST}, 0.8, True),  # better is not worse
        ({0.5: SAME, 0.2: LOST, 0.1: SAME, 0.05: LUCKY}, 0.5, True),  # luck behind a loss does not count
        ({0.05: LOST, 0.5: SAME, 0.1: SAME}, 0.9, True),  # in whatever order they were measured
    ],
)
def test_the_limit_is_the_last_before_the_first_loss(
    retained: dict, sparsity: float | None, sparser: bool, higher_is_better: bool
):
    found = _limit(_record(retained, higher_is_better=higher_is_better))
    assert found.sparsity == (None if sparsity is None else pytest.approx(sparsity))
    assert found.sparser is sparser
    assert found.family == "block top-k"
    loss = LOST if sparsity is None else SAME
    assert found.retained.mean == pytest.approx(loss, abs=0.03)


def test_a_limit_is_never_told_without_what_is_retained_there():
    assert str(_limit(_record({0.5: SAME, 0.2: LOST}))).startswith("50%: ")
    assert str(_limit(_record({0.5: SAME, 0.2: SAME}))).startswith("at least 80%: ")
    text = str(_limit(_record({0.5: LOST})))
    assert text.startswith("none: 90.")
    assert text.endswith("]")


def test_few_items_find_fewer_losses_and_too_few_none_at_all():
    small = {0.5: SAME, 0.2: 0.995}
    assert _limit(_record(small)).sparsity == pytest.approx(0.5)
    assert limits(contenders(_record(small, items=3), "prefill")) == {}


def test_while_decoding_it_is_bytes_that_are_spared():
    found = _record({0.5: SAME, 0.25: LOST}, phase="decode")
    read = {"sdpa": 1000.0, "block top-k-0.5": 750.0, "block top-k-0.25": 625.0}
    grades = {
        key: one.model_copy(update={"work": one.work.model_copy(update={"read": read[one.cell.entry.name]})})
        for key, one in found.grades.items()
    }
    assert _limit(found.model_copy(update={"grades": grades}), "decode").sparsity == pytest.approx(0.25)
    assert _limit(found, "decode").sparsity == pytest.approx(0.5)  # pairs, where the record knows no bytes


def test_exams_in_which_dense_attention_does_too_little_have_no_limit():
    found = _record({0.5: SAME})
    demanding = {key: one.model_copy(update={"least": 0.95}) for key, one in found.sheets.items()}
    assert limits(contenders(found.model_copy(update={"sheets": demanding}), "prefill")) == {}
