"""The scripts under benchmarks/, on records made up by hand."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from dynattn.lab.bench.check import Check
from dynattn.lab.bench.record import Record, Result, save
from dynattn.lab.bench.roofline import Roofline
from dynattn.lab.bench.suites import suite
from dynattn.lab.machine import machine
from dynattn.lab.timing import Timing

FOLDER = Path(__file__).parents[2] / "benchmarks"
SECONDS = {"sdpa": 1.8, "unfused": 6.0, "dense": 1.3, "nm-1-2": 1.0, "nm-2-4": 1.04, "nm-1-2-w64-s4": 1.05}


@pytest.fixture
def script(monkeypatch):
    def load(name: str) -> ModuleType:
        monkeypatch.syspath_prepend(str(FOLDER))
        for module in ("targets", name):
            monkeypatch.delitem(sys.modules, module, raising=False)
        return importlib.import_module(name)

    return load


def _record(name: str, seconds: dict[str, float]) -> Record:
    """Each function takes the same time on every workload, a little more in the second of the three rounds."""
    results = []
    for workload, methods in _groups(name).items():
        for function in ("sdpa", "unfused", *methods):
            samples = (seconds[function], 1.1 * seconds[function], seconds[function])
            timing = Timing(samples, 1, (0.0, 0.0, 0.0))
            results.append(Result(workload, function, "cpu", 1e9, workload.dense_flops, 8, Check(0.0, 1e-6, 8), timing))
    return Record(name, machine(), Roofline(2e11, 2e10, "avx2", 2), tuple(results))


def _groups(name: str) -> dict:
    groups = {}
    for case in suite(name):
        groups.setdefault(case.workload, []).append(case.method.name)
    return groups


RECORDS = ("targets", "small", "training")


def test_every_target_can_be_measured(script):
    outcomes = script("check_targets").judge([_record(name, SECONDS) for name in RECORDS])
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
    outcomes = script("check_targets").judge([_record("targets", SECONDS | {function: seconds})])
    assert {outcome.target.promise for outcome in outcomes if outcome.verdict == "MISSED"} == promises


def test_training_counts_too(script):
    outcomes = script("check_targets").judge([_record("training", SECONDS | {"nm-1-2": 1.4})])
    missed = {outcome.target.promise for outcome in outcomes if outcome.verdict == "MISSED"}
    assert missed == {"training: 1:2 against SDPA"}


def test_small_sizes_count_too(script):
    outcomes = script("check_targets").judge([_record("small", SECONDS | {"nm-2-4": 1.81})])
    missed = [outcome.target for outcome in outcomes if outcome.verdict == "MISSED"]
    assert len(missed) == 16
    assert {target.function for target in missed} == {"nm-2-4"}


def test_check_targets_prints_and_fails(script, tmp_path, capsys):
    check_targets = script("check_targets")
    for name in RECORDS:
        save(_record(name, SECONDS), tmp_path / f"{name}.json")
    files = [str(tmp_path / f"{name}.json") for name in RECORDS]
    assert check_targets.main(files) == 0
    assert "96 of 96 met" in capsys.readouterr().out
    assert check_targets.main(files[:1]) == 1
    assert "not measured" in capsys.readouterr().out


def test_plot_draws_both_grounds(script, tmp_path, monkeypatch):
    plot = script("plot_speedups")
    monkeypatch.setattr(plot, "IMAGES", tmp_path / "images")
    save(_record("targets", SECONDS), tmp_path / "record.json")
    assert plot.main([str(tmp_path / "record.json")]) == 0
    light, dark = ((tmp_path / "images" / name).read_text() for name in ("speedups.svg", "speedups-dark.svg"))
    assert "#1f2328" in light
    assert "#e6edf3" in dark
    assert "#000000" not in dark


def test_comparisons_are_recorded_and_failures_told(script, tmp_path, monkeypatch, capsys):
    record_compare = script("record_compare")
    monkeypatch.setattr(record_compare, "RESULTS", tmp_path / "results")
    commands = []

    def dynattn(command, check):
        commands.append(command)
        model, folder = (command[command.index(option) + 1] for option in ("--model", "--output"))
        if model == "whisper":
            return subprocess.CompletedProcess(command, 2)
        Path(folder, f"compare-{model}.json").write_text(model)
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(record_compare.subprocess, "run", dynattn)
    assert record_compare.main(["minilm"]) == 0
    assert commands[0][3:5] == ["compare", "--model"]
    assert "dense,nm-2-4,nm-1-2,nm-2-4-x16,nm-1-2-x16" in commands[0]
    assert record_compare.main([]) == 1
    assert "no record of whisper" in capsys.readouterr().out
    assert sorted(path.read_text() for path in (tmp_path / "results").iterdir()) == ["dinov2", "minilm", "smollm2"]
    assert record_compare.main(["nonsense"]) == 2
    assert len(commands) == 5
