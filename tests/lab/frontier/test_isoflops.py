"""Sizes of a model at equal cost, on scores and costs made up so that it is known what is best."""

# pyright: reportUnhashable=false

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

pytest.importorskip("pydantic")
pytest.importorskip("scipy")

from dynattn.lab.frontier.cell import DENSE, Entry, Exam, Phase
from dynattn.lab.frontier.isoflops import Ground, best, duels, envelope, grounds
from dynattn.lab.frontier.results import Frontier, Grade
from tests.lab.frontier.records import entry, exam, grade, record, sheet

ITEMS = 40
BASE = np.random.default_rng(0).uniform(-0.2, 0.2, ITEMS)
QUARTER, EIGHTH, LUCKY = entry("top-k", 0.25), entry("top-k", 0.125), entry("random", 0.25)
# By model and method: the cost, the share of pairs that is kept, and the mean score.
SMALL = {DENSE: (100.0, 1.0, 0.50), QUARTER: (80.0, 0.25, 0.40), LUCKY: (80.0, 0.25, 0.99)}
LARGE = {DENSE: (300.0, 1.0, 0.90), QUARTER: (95.0, 0.25, 0.70), EIGHTH: (60.0, 0.125, 0.30)}


def _of(model: str, of: Exam) -> Exam:
    return of.model_copy(update={"model": model})


def _graded(of: Exam, who: Entry, cost: float, kept: float, mean: float, noise: int) -> Grade:
    scores = mean + BASE + 0.01 * np.random.default_rng(noise).standard_normal(ITEMS)
    return grade(of, who, scores.tolist(), pairs=100 * kept, total=cost)


def _record(model: str, points: dict[Entry, tuple[float, float, float]], *exams: Exam, sign: int = 1) -> Frontier:
    its = [_of(model, of) for of in exams or (exam(),)]
    grades = [
        _graded(of, who, cost, kept, sign * mean, number)
        for of in its
        for number, (who, (cost, kept, mean)) in enumerate(points.items())
    ]
    return record([sheet(of, ITEMS, higher_is_better=sign > 0) for of in its], grades, model=model)


def _ground(*records: Frontier, phase: Phase = "prefill", cost: str = "FLOPs") -> Ground:
    (found,) = grounds(records, phase, cost)
    return found


def _labels(settings: Sequence) -> list[str]:
    return [one.label for one in settings]


@pytest.mark.parametrize("sign", [1, -1])
def test_the_envelope_says_what_is_best_at_every_budget(sign: int):
    """With negative scores, lower is better: likelihoods."""
    found = _ground(_record("small", SMALL, sign=sign), _record("large", LARGE, sign=sign))
    steps = envelope(found)
    assert _labels([step.setting for step in steps]) == [
        "large, top-k 1/8", "small, top-k 1/4", "large, top-k 1/4", "large, dense",
    ]  # fmt: skip
    assert [step.setting.kept for step in steps] == [0.125, 0.25, 0.25, 1.0]
    assert [step.against and step.against.label for step in steps] == [None, None, None, "large, dense"]
    for budget, want in ((59, None), (60, 0.30), (79, 0.30), (80, 0.40), (95, 0.70), (299, 0.70), (1e9, 0.90)):
        at = best(found, budget)
        assert (None if at is None else round(sign * at.score, 1)) == want


def test_each_step_is_held_against_the_best_dense_model_that_costs_no_more():
    large = LARGE | {QUARTER: (120.0, 0.25, 0.70)}
    found = _ground(_record("small", SMALL), _record("large", large))
    step = next(step for step in envelope(found) if step.setting.label == "large, top-k 1/4")
    assert step.against is not None
    assert step.against.label == "small, dense"
    assert step.difference is not None
    assert step.difference.mean == pytest.approx(0.2, abs=0.01)
    assert step.difference.low is not None
    assert 0.19 < step.difference.low < step.difference.mean  # paired: items differ by far more


def test_a_larger_sparse_model_meets_a_smaller_dense_one_at_its_cost():
    (duel,) = duels(_ground(_record("small", SMALL), _record("large", LARGE)))
    assert (duel.small.label, duel.large.label) == ("small, dense", "large, top-k 1/4")  # 95 of 100, and not 60
    assert duel.difference is not None
    assert duel.difference.mean == pytest.approx(0.2, abs=0.01)
    dear = {who: (cost + 100, kept, mean) for who, (cost, kept, mean) in LARGE.items()}
    (duel,) = duels(_ground(_record("small", SMALL), _record("large", dear)))
    assert (duel.large.label, duel.large.cost, duel.difference) == ("large, top-k 1/8", 160.0, None)


def test_the_envelope_is_that_of_every_pair_of_settings():
    """By loops: a setting is on it where no other one is as cheap and as good."""
    draw = np.random.default_rng(1)
    for _ in range(20):
        points = [
            {who: (float(draw.integers(1, 9)), 0.5, float(draw.integers(1, 6))) for who in (DENSE, QUARTER, EIGHTH)}
            for _ in range(3)
        ]
        records = []
        for model, own in zip("abc", points, strict=True):
            of = _of(model, exam())
            grades = [grade(of, who, [mean] * 8, 50.0, cost) for who, (cost, _, mean) in own.items()]
            records.append(record([sheet(of)], grades, model=model))
        found = _ground(*records)
        costs = sorted({one.cost for one in found.settings})
        steps = [step.setting for step in envelope(found)]
        for cost in costs:
            at = [one for one in steps if one.cost <= cost][-1:]
            reached = max(one.score for one in found.settings if one.cost <= cost)
            assert [one.score for one in at] == [reached]
        assert [one.cost for one in steps] == sorted({one.cost for one in steps})


def test_records_of_one_model_are_put_together_and_lengths_stay_apart():
    short, long = exam(tokens=64), exam(tokens=128)
    halves = [_record("small", dict([pair]), short, long) for pair in SMALL.items()]
    found = grounds([*halves, _record("large", LARGE, short, long)], "prefill", "FLOPs")
    assert [one.sheet.exam.tokens for one in found] == [64, 128]
    assert "small, top-k 1/4" in _labels(found[0].settings)
    assert not any("random" in label for label in _labels(found[0].settings))  # looks at nothing, and was lucky
    alone = grounds([_record("small", SMALL, short), _record("large", LARGE, long)], "prefill", "FLOPs")
    assert alone == []
    assert grounds([*halves, _record("large", LARGE, short)], "decode", "FLOPs") == []


def test_while_decoding_a_budget_may_be_of_the_bytes_of_weights_and_cache():
    records = []
    for model, points, weights in (("small", SMALL, 100.0), ("large", LARGE, 400.0)):
        made = _record(model, points, exam(phase="decode"))
        grades = {
            key: one.model_copy(
                update={"work": one.work.model_copy(update={"read": one.work.pairs, "weights": weights})}
            )
            for key, one in made.grades.items()
        }
        records.append(made.model_copy(update={"grades": grades}))
    found = _ground(*records, phase="decode", cost="bytes")
    assert {one.label: one.cost for one in found.settings} == {
        "small, dense": 200.0, "small, top-k 1/4": 125.0, "large, dense": 500.0, "large, top-k 1/4": 425.0,
        "large, top-k 1/8": 412.5,
    }  # fmt: skip
    assert grounds([_record(model, SMALL) for model in ("a", "b")], "prefill", "bytes") == []  # no forward tells them


def test_exams_in_which_all_guess_or_each_is_held_against_itself_are_left_out():
    def changed(made: Frontier, **fields: object) -> Frontier:
        return made.model_copy(update={"sheets": {k: s.model_copy(update=fields) for k, s in made.sheets.items()}})

    records = _record("small", SMALL), _record("large", LARGE)
    assert grounds([changed(one, least=0.95) for one in records], "prefill", "FLOPs") == []
    assert len(_ground(*[changed(one, least=0.6) for one in records]).dense) == 2  # the small one's score is what it is
    assert grounds([changed(one, metric="cosine to dense") for one in records], "prefill", "FLOPs") == []
    guesses = [changed(one, chance=chance) for one, chance in zip(records, (10.80, 10.83), strict=True)]
    with pytest.raises(ValueError, match=r"a guess must score alike for all models: .* 10\.8 for small and 10\.83"):
        grounds(guesses, "prefill", "FLOPs")
    padded = [changed(one, chance=chance) for one, chance in zip(records, (0.1, 0.10001), strict=True)]
    assert len(grounds(padded, "prefill", "FLOPs")) == 1


def test_what_cannot_be_compared_is_refused():
    small, large = _record("small", SMALL), _record("large", LARGE)
    with pytest.raises(ValueError, match="records must be of at least two models: got small"):
        grounds([small, small], "prefill", "FLOPs")
    with pytest.raises(ValueError, match=r"models must be of one kind: got small \(encoder\), large \(decoder\)"):
        grounds([small, large.model_copy(update={"kind": "decoder"})], "prefill", "FLOPs")
    with pytest.raises(
        ValueError, match=r"of one dtype: got small \(float32\), large \(bfloat16\); measure all models"
    ):
        grounds([small, large.model_copy(update={"dtype": "bfloat16"})], "prefill", "FLOPs")
    others = {
        key: one.model_copy(update={"items": [f"x{i}" for i in range(ITEMS)]}) for key, one in large.sheets.items()
    }
    with pytest.raises(ValueError, match="an exam must ask all models the same items: retrieval 64 does not ask small"):
        grounds([small, large.model_copy(update={"sheets": others})], "prefill", "FLOPs")
