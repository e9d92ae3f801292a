"""A run's record: ratios, shares of peak, and the way to a file and back."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import replace

import pytest
import torch

from dynattn.lab.bench.cases import Workload
from dynattn.lab.bench.check import Check
from dynattn.lab.bench.page import page
from dynattn.lab.bench.record import Record, Result, load, save
from dynattn.lab.bench.roofline import Roofline, roofline
from dynattn.lab.bench.table import cells, columns, limits, mistakes, note, warning
from dynattn.lab.machine import describe, machine
from dynattn.lab.timing import Timing

RIGHT, WRONG = Check(1e-7, 1e-6, 40), Check(0.5, 1e-6, 40)
WORKLOAD = Workload(heads=12, q_len=2048, head_dim=64)


def _result(function: str, samples: tuple[float, ...], flops: float = 6e9) -> Result:
    timing = Timing(samples, 3, tuple(0.0 for _ in samples))
    return Result(WORKLOAD, function, "torch", flops, 8_000_000_000, 1 << 20, RIGHT, timing)


@pytest.fixture
def record() -> Record:
    results = (
        _result("sdpa", (0.10, 0.12, 0.11), 8e9),
        _result("unfused", (0.30, 0.36, 0.33), 8e9),
        _result("dense", (0.10, 0.12, 0.11), 8e9),
        _result("nm-1-2", (0.05, 0.06, 0.055)),
        replace(_result("nm-2-4", (1.0,)), check=WRONG, timing=None),
    )
    return Record("targets", machine(), Roofline(2e11, 2e10, "avx2", 2), results)


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


def test_cells(record):
    row = cells(record, record.results[3])
    assert tuple(row) == columns(record)
    assert row["heads×length×dim"] == "12×2048×64"
    assert (row["ms"], row["× SDPA"], row["× unfused"], row["× dense"]) == ("55", "2.00", "6.00", "2.00")
    assert (row["GFLOP/s"], row["of peak"], row["disturbed"]) == ("109", "55%", "0/3")


def test_wrong_result_shows_no_figure(record):
    row = list(cells(record, record.results[4]).values())
    assert row[:4] == ["12×2048×64", "nm-2-4", "torch", "WRONG"]
    assert not any(row[4:])
    assert mistakes(record) == ["WRONG: nm-2-4 (torch) on 12×2048×64: off by 5.0e-01, may be 1.0e-06"]


@pytest.fixture
def gpu_record() -> Record:
    workload = replace(WORKLOAD, dtype="bfloat16")
    times = {"sdpa": 1.2e-4, "sdpa-flash": 1.0e-4, "unfused": 1e-3, "nm-1-2": 0.8e-4}
    results = tuple(
        replace(_result(name, (seconds,) * 3, 2e10), workload=workload, call=2e-4) for name, seconds in times.items()
    )
    refused = replace(results[0], function="sdpa-cudnn", timing=None, check=Check(0.0, 0.0, 0), failed="no kernel")
    here = machine() | {"gpu": {"name": "A GPU", "multiprocessors": 132, "driver": "580", "cuda": "13", "cudnn": 9}}
    return Record("paper", here, Roofline(8e14, 4e12, "bfloat16", 0), (*results, refused))


def test_on_a_gpu_the_fastest_dense_attention_is_the_baseline(gpu_record):
    workload = gpu_record.results[0].workload
    assert gpu_record.baseline(workload) == "sdpa-flash"
    row = cells(gpu_record, gpu_record.results[3])
    assert tuple(row) == columns(gpu_record)
    assert (row["ms"], row["× best dense"], row["× SDPA"], row["× unfused"]) == ("0.08", "1.25", "1.50", "12.50")
    assert (row["TFLOP/s"], row["dense TFLOP/s"], row["of peak"]) == ("250", "100", "31%")
    assert (row["of copy"], row["call ms"]) == ("0%", "0.2")
    assert limits(gpu_record.roofline) == (
        "800 TFLOP/s in a large matrix product (bfloat16), 4.00 TB/s in a large copy"
    )
    assert set(columns(gpu_record, short=True)) <= set(row)
    assert gpu_record.baseline(WORKLOAD) == "sdpa"  # nothing was timed there


def test_a_peer_that_refuses_is_not_wrong(gpu_record):
    refused = gpu_record.results[4]
    assert not refused.wrong
    assert cells(gpu_record, refused)["ms"] == "cannot"
    assert mistakes(gpu_record) == []


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


def test_products_are_measured_in_each_dtype_asked_for():
    found = roofline(0.02, dtypes=("float32", "bfloat16"))
    assert list(found.products) == ["float32", "bfloat16"]
    assert all(flops > 0 for flops in found.products.values())


def test_a_gpus_page_and_words(gpu_record, tmp_path):
    save(gpu_record, tmp_path / "r.json")
    assert load(tmp_path / "r.json") == gpu_record
    html = page(gpu_record)
    assert "the fastest dense attention" in html
    assert "on A GPU" in html
    assert "cannot" in html
    assert describe(gpu_record.machine).startswith("A GPU, 132 multiprocessors, driver 580, CUDA 13, cuDNN 9; torch")
    assert "CUDA graph" in note(gpu_record)


def test_attainable_is_the_lower_roof():
    roofline = Roofline(flops=2e11, bandwidth=2e10, isa="avx2", threads=2)
    assert roofline.attainable(1.0) == 2e10
    assert roofline.attainable(1000.0) == 2e11
    assert limits(roofline) == "200 GFLOP/s peak (avx2), 20.0 GB/s copy, 2 threads"


def test_higher_of_two_measurements():
    one, two = Roofline(2e11, 1e10, "avx2", 2), Roofline(1e11, 2e10, "avx2", 2)
    assert one.or_higher(two) == two.or_higher(one) == Roofline(2e11, 2e10, "avx2", 2)
    two, high = replace(two, products={"float16": 2.0, "float32": 1.0}), {"float16": 3.0, "float32": 1.0}
    assert replace(one, products={"float16": 3.0}).or_higher(two).products == high
    assert replace(one, flops=None).or_higher(replace(two, flops=None)).flops is None


def test_disturbed_runs_are_warned_of(record):
    assert warning(record) == ""
    assert "samples were disturbed" not in page(record)
    timing = Timing((0.1,) * 3, 1, (0.5, 0.5, 0.0))
    record = replace(record, results=(*record.results[:3], replace(record.results[3], timing=timing)))
    assert warning(record).startswith("2 of 12 samples were disturbed")
    assert warning(record) in page(record)


def test_limits_are_measured():
    here = roofline(seconds=0.6)
    assert here.threads == torch.get_num_threads()
    assert 1e8 < here.bandwidth < 1e13
    if here.flops is not None:
        assert 1e8 < here.flops < 1e14


def test_page_is_whole_and_alone(record):
    html = page(record)
    assert html.count("<svg") == 2
    assert mistakes(record)[0] in html
    assert "12×2048×64" in html
    assert "http" not in html


def test_machine_names_what_decides_speed():
    here = machine()
    assert here["cores"] >= 1
    assert here["threads"] >= 1
    assert here["processor"]
    assert json.loads(json.dumps(here)) == here
    assert here["processor"] in describe(here)
