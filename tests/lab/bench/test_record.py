"""A run's record: ratios, shares of peak, and the way to a file and back."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import replace

import pytest

from dynattn.lab.bench.check import Check
from dynattn.lab.bench.record import load, save
from dynattn.lab.bench.table import cells, limits
from tests.lab.bench.made_up import WORKLOAD


def test_round_trip(record, tmp_path):
    path = tmp_path / "new folder" / "record.json"
    save(record, path)
    assert load(path) == record
    assert json.loads(path.read_text())["results"][3]["timing"]["samples"] == [0.05, 0.06, 0.055]


def test_a_result_without_a_finite_error_comes_back(record, tmp_path):
    path = tmp_path / "record.json"
    nan = replace(record.results[4], check=Check(math.inf, 1e-6, 40))
    save(replace(record, results=(nan,)), path)
    assert load(path).results == (nan,)


def test_writing_needs_no_package(record, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pydantic", None)  # importing it fails
    path = tmp_path / "record.json"
    save(record, path)
    assert json.loads(path.read_text())["suite"] == "targets"
    with pytest.raises(ImportError, match="reading records needs pydantic"):
        load(path)


def test_not_a_record(tmp_path):
    path = tmp_path / "other.json"
    path.write_text('{"suite": "targets"}')
    with pytest.raises(ValueError, match="machine"):
        load(path)


def test_speedups_and_shares(record):
    speedup = record.speedup(WORKLOAD, "nm-1-2")
    assert speedup is not None
    assert speedup.median == pytest.approx(2.0)
    assert record.speedup(WORKLOAD, "nm-2-4") is None
    assert record.speedup(WORKLOAD, "nm-1-4") is None
    own = record.by_workload()[WORKLOAD]["nm-1-2"]
    assert record.share_of_peak(own) == pytest.approx(6e9 / 0.055 / 2e11)
    assert replace(record, roofline=replace(record.roofline, flops=None)).share_of_peak(own) is None


def test_float32_has_no_share_of_a_gpus_16_bit_peak(gpu_record):
    tf32 = replace(gpu_record.results[3], workload=replace(WORKLOAD, dtype="tf32"))
    assert gpu_record.share_of_peak(tf32) is None
    assert gpu_record.share_of_bandwidth(tf32) == pytest.approx((1 << 20) / 0.8e-4 / 4e12)


def test_a_share_is_of_the_peak_in_the_workloads_dtype(record, gpu_record):
    half = replace(record.results[3], workload=replace(WORKLOAD, dtype="bfloat16"))
    taken = 6e9 / 0.055
    measured = replace(record.roofline, products={"float32": 1e11, "bfloat16": 8e11})
    there = replace(record, roofline=measured)
    assert there.share_of_peak(half) == pytest.approx(taken / 8e11)
    assert there.share_of_peak(record.results[3]) == pytest.approx(taken / 2e11)  # of the FMA peak, which is higher
    assert record.share_of_peak(half) == pytest.approx(taken / 2e11)  # a record of before: widened to float32
    assert cells(there, half)["of peak"] == "14%"
    assert "800 GFLOP/s product in bfloat16" in limits(measured)
    tf32 = replace(gpu_record.results[3], workload=replace(WORKLOAD, dtype="tf32"))
    on_gpu = replace(gpu_record, roofline=replace(gpu_record.roofline, products={"tf32": 5e14}))
    assert on_gpu.share_of_peak(tf32) == pytest.approx(2e10 / 0.8e-4 / 5e14)
