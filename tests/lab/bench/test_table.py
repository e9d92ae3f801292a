"""A record's table: cells, baselines and warnings."""

from __future__ import annotations

from dataclasses import replace

from dynattn.lab.bench.page import page
from dynattn.lab.bench.table import cells, columns, limits, mistakes, warning
from dynattn.lab.timing import Timing
from tests.lab.bench.made_up import WORKLOAD


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


def test_disturbed_runs_are_warned_of(record):
    assert warning(record) == ""
    assert "samples were disturbed" not in page(record)
    timing = Timing((0.1,) * 3, 1, (0.5, 0.5, 0.0))
    record = replace(record, results=(*record.results[:3], replace(record.results[3], timing=timing)))
    assert warning(record).startswith("2 of 12 samples were disturbed")
    assert warning(record) in page(record)
