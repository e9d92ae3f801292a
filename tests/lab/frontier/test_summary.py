"""Shares of dense attention's quality, contenders, and which of them to take."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

pytest.importorskip("pydantic")
pytest.importorskip("scipy")

from dynattn.lab.frontier.choice import picks, undominated
from dynattn.lab.frontier.summary import contenders, exams, timing_machine, titles
from tests.lab.frontier.records import dense, entry, exam, grade, record, sheet, time

DRAW = np.random.default_rng(0)
FULL = DRAW.uniform(0.4, 0.6, 40)


def _sweep():
    """Two lengths; a good method, a bad one that is cheap and a linear one, and both baselines, at 1/2."""
    short, long = exam(tokens=64), exam(tokens=128)
    good, bad, linear = entry("top-k", 0.5), entry("window", 0.5), entry("", None, "linear")
    random, fixed = entry("random", 0.5), entry("fixed", 0.5)
    shares = {good.label: (0.98, 0.96), bad.label: (0.5, 0.7), linear.label: (0.92, 0.94)}
    shares |= {random.label: (0.5, 0.5), fixed.label: (0.8, 0.7)}
    grades, times = [], []
    for place, of in enumerate((short, long)):
        grades.append(dense(of, FULL.tolist()))
        for who in (good, bad, linear, random, fixed):
            scores = FULL * (shares[who.label][place] + 0.001 * DRAW.standard_normal(40))
            grades.append(grade(of, who, scores.tolist(), None if who is linear else 50.0, 800 if who is bad else 900))
        times += [time(of, good, 1.25 if of is short else 1.6), time(of, bad, 1.1), time(of, linear, 0.5)]
    return record([sheet(short, 40), sheet(long, 40)], grades, [*times, time(short, good, 9.0, "other machine")])


def test_a_contender_has_its_worst_exam_its_mean_and_its_costs():
    found = _sweep()
    good, bad, linear, *_ = contenders(found, "prefill")
    assert (good.label, bad.label, linear.label) == ("top-k 1/2", "window 1/2", "linear")
    assert good.worst.sheet.exam.tokens == 128
    assert good.worst.retained.mean == pytest.approx(0.96, abs=0.002)
    assert good.retained.mean == pytest.approx(0.97, abs=0.002)
    assert (good.density, good.flops, good.kept_mass) == (0.5, 0.9, 0.8)
    assert (linear.density, linear.kept_mass) == (None, None)
    assert timing_machine(found) == "0"
    assert good.time == pytest.approx(math.sqrt(1 / 1.25 / 1.6))
    assert contenders(found, "decode") == []


def test_a_method_has_to_beat_every_baseline_of_its_budget():
    good, bad, linear, random, fixed = contenders(_sweep(), "prefill")
    assert good.beats_baselines is True
    assert set(bad.leads) == {"random", "fixed"}
    assert bad.leads["random"].mean == pytest.approx(0.1, abs=0.01)
    assert bad.leads["fixed"].mean == pytest.approx(-0.15, abs=0.01)
    assert bad.beats_baselines is False
    assert (linear.beats_baselines, random.beats_baselines, fixed.beats_baselines) == (None, None, None)


def test_the_pick_is_the_cheapest_that_retains_enough_and_costs_less_than_dense():
    chosen = contenders(_sweep(), "prefill")
    found = {(pick.least, pick.cost): pick.contender and pick.contender.label for pick in picks(chosen)}
    assert found[0.99, "time"] is None
    assert found[0.95, "time"] == found[0.95, "FLOPs"] == "top-k 1/2"
    assert found[0.90, "FLOPs"] in ("top-k 1/2", "linear")
    assert found[0.90, "time"] == "top-k 1/2"  # the linear one is slower than dense
    assert found[0.90, "pairs"] == "top-k 1/2"
    (slow,) = [one for one in chosen if one.label == "linear"]
    assert {pick.cost for pick in picks([slow]) if pick.contender} == {"FLOPs"}  # for time dense is better


def test_the_frontier_leaves_out_what_another_method_beats_in_both():
    chosen = contenders(_sweep(), "prefill")
    assert [one.label for one in undominated(chosen, lambda one: one.time)] == ["top-k 1/2"]
    assert [one.label for one in undominated(chosen, lambda one: one.flops)] == ["window 1/2", "top-k 1/2"]


def test_methods_that_missed_exams_are_not_chosen():
    chosen = contenders(_sweep(), "prefill")
    best = picks(chosen)[3].contender
    assert best is not None
    short = dataclasses.replace(best, results=best.results[:1])
    rest = [short if one is best else one for one in chosen]
    assert short not in [pick.contender for pick in picks(rest)]
    assert short not in undominated(rest, lambda one: one.flops)
    assert short in undominated([short], lambda one: one.flops)
    assert not any(pick.contender for pick in picks([]))
    assert undominated([], lambda one: one.flops) == []


def test_exams_in_which_dense_attention_scores_nothing_are_left_out_and_titles_are_told_apart():
    few, many, hopeless = exam(items=8), exam(items=9), exam("manpages")
    found = record(
        [sheet(few), sheet(many, 9), sheet(hopeless)],
        [dense(few, [1.0] * 8), dense(many, [1.0] * 9), dense(hopeless, [0.0] * 8)],
    )
    assert list(titles(exams(found, "prefill")).values()) == ["retrieval 64 (8 items)", "retrieval 64 (9 items)"]
