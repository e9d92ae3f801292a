"""Targets on records made up by hand: what is met, what is missed, what was not measured."""

from __future__ import annotations

import pytest

from dynattn.lab.bench.record import save
from tests.benchmarks.made_up import SECONDS, record_of

RECORDS = ("targets", "small", "training")


def test_every_target_can_be_measured(script):
    outcomes = script("check_targets").judge([record_of(name, SECONDS) for name in RECORDS])
    assert len(outcomes) == 11 * 4 + 2 + 16 * 3 + 2
    assert {outcome.verdict for outcome in outcomes} == {"met"}


@pytest.mark.parametrize(
    ("function", "seconds", "promises"),
    [
        ("nm-1-2", 1.07, {"1:2 against SDPA"}),  # 1.68: under 1.7 at head_dim 32 alone
        ("dense", 1.19, {"1:2 against own dense"}),
        ("nm-2-4", 1.06, {"2:4 within 5% of 1:2"}),
        ("nm-1-2-w64-s4", 1.09, {"window of 64 and 4 sinks costs under 8%"}),
        ("dense", 1.9, {"dense against SDPA"}),
    ],
)
def test_missed_targets_are_found(script, function, seconds, promises):
    outcomes = script("check_targets").judge([record_of("targets", SECONDS | {function: seconds})])
    assert {outcome.target.promise for outcome in outcomes if outcome.verdict == "MISSED"} == promises


def test_training_counts_too(script):
    outcomes = script("check_targets").judge([record_of("training", SECONDS | {"nm-1-2": 1.4})])
    missed = {outcome.target.promise for outcome in outcomes if outcome.verdict == "MISSED"}
    assert missed == {"training: 1:2 against SDPA"}


def test_small_sizes_count_too(script):
    outcomes = script("check_targets").judge([record_of("small", SECONDS | {"nm-2-4": 1.81})])
    missed = [outcome.target for outcome in outcomes if outcome.verdict == "MISSED"]
    assert len(missed) == 16
    assert {target.function for target in missed} == {"nm-2-4"}


def test_check_targets_prints_and_fails(script, tmp_path, capsys):
    check_targets = script("check_targets")
    for name in RECORDS:
        save(record_of(name, SECONDS), tmp_path / f"{name}.json")
    files = [str(tmp_path / f"{name}.json") for name in RECORDS]
    assert check_targets.main(files) == 0
    assert "96 of 96 met" in capsys.readouterr().out
    assert check_targets.main(files[:1]) == 1
    assert "not measured" in capsys.readouterr().out
