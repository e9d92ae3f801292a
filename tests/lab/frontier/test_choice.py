"""Advice stands on intervals: a lucky mean, a lucky time or a guess is none."""

from __future__ import annotations

import numpy as np
import pytest

from dynattn.lab.figures import Spread
from dynattn.lab.frontier.choice import picks
from dynattn.lab.frontier.document import page, sentences
from dynattn.lab.frontier.summary import contenders
from tests.lab.frontier.records import dense, entry, exam, grade, record, sheet, time

DRAW = np.random.default_rng(0)
FULL = DRAW.uniform(0.4, 1.0, 40)
GOOD, RANDOM, FIXED = entry("top-k", 0.5), entry("random", 0.5), entry("fixed", 0.5)


def _record(scores, baseline=0.5, chance=None, speedup=None):
    of = exam()
    grades = [dense(of, FULL.tolist()), grade(of, GOOD, scores.tolist())]
    grades += [grade(of, who, (baseline * FULL).tolist()) for who in (RANDOM, FIXED)]
    asked = sheet(of, len(FULL)).model_copy(update={"chance": chance})
    times = [] if speedup is None else [time(of, GOOD, 1.0).model_copy(update={"speedup": speedup})]
    return record([asked], grades, times)


def _picked(found, least: float, cost: str = "FLOPs"):
    chosen = contenders(found, "prefill")
    (pick,) = [pick for pick in picks(chosen) if (pick.least, pick.cost) == (least, cost)]
    return pick.contender and pick.contender.label


def test_a_mean_whose_interval_reaches_below_the_bound_is_no_advice():
    lucky = FULL * (0.97 + 0.3 * DRAW.standard_normal(40))
    lucky += (0.97 * FULL - lucky).mean()
    assert np.mean(lucky) / np.mean(FULL) == pytest.approx(0.97)
    assert _picked(_record(lucky), 0.95) is None
    assert _picked(_record(0.97 * FULL), 0.95) == "top-k 1/2"
    assert "95% of the quality in every exam: no method is sure to" in " ".join(
        sentences(contenders(_record(lucky), "prefill"))
    )


def test_what_does_not_beat_looking_at_nothing_is_no_advice_nor_are_those():
    assert _picked(_record(0.97 * FULL, baseline=0.97), 0.95) is None
    assert _picked(_record(0.5 * FULL, baseline=0.97), 0.95) is None


@pytest.mark.parametrize(("low", "wanted"), [(1.02, "top-k 1/2"), (0.9, None)])
def test_a_time_that_varies_around_dense_attentions_is_not_faster(low: float, wanted: str | None):
    found = _record(0.99 * FULL, speedup=Spread(median=1.1, q1=low, q3=1.2))
    assert _picked(found, 0.95, "time") == wanted


def test_where_dense_attention_guesses_nothing_can_be_concluded():
    found = _record(FULL, chance=float(FULL.mean()))
    assert _picked(found, 0.9) is None
    assert "dense is at chance, so nothing can be concluded about any method" in page(found)
    assert _picked(_record(FULL, chance=0.1), 0.99) == "top-k 1/2"
