"""``dynattn bench`` on a minuscule suite."""

from __future__ import annotations

import pytest
import torch
from typer.testing import CliRunner

from dynattn.cli import app
from dynattn.lab.bench import command, run, suites
from dynattn.lab.bench.cases import Workload
from dynattn.lab.bench.record import load
from dynattn.lab.bench.roofline import Roofline
from dynattn.methods import NM

TINY = Workload(heads=2, q_len=16, head_dim=8)


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setitem(suites._CPU, "targets", [(TINY, (NM(1, 1), NM(1, 2)))])
    monkeypatch.setattr(command, "roofline", lambda **_: Roofline(2e11, 2e10, "avx2", torch.get_num_threads()))


def _bench(tmp_path, *arguments: str):
    paths = ["--output", str(tmp_path / "r.json"), "--report", str(tmp_path / "r.html")]
    return CliRunner(env={"COLUMNS": "200"}).invoke(app, ["bench", "--rounds", "2", *paths, *arguments])


def test_writes_record_and_page(tiny, tmp_path):
    result = _bench(tmp_path, "--threads", "1")
    assert result.exit_code == 0, result.output
    record = load(tmp_path / "r.json")
    assert [r.function for r in record.results] == ["sdpa", "unfused", "dense", "nm-1-2"]
    assert all(r.timing is not None and len(r.timing.samples) == 2 for r in record.results)
    assert record.machine["threads"] == record.roofline.threads == 1
    assert "2×16×8" in result.output
    assert "<svg" in (tmp_path / "r.html").read_text()


def test_methods_and_backend_by_name(tiny, tmp_path):
    result = _bench(tmp_path, "--methods", "nm-2-4, nm-1-4-w2", "--backend", "reference")
    assert result.exit_code == 0, result.output
    results = load(tmp_path / "r.json").results
    assert [(r.function, r.backend) for r in results[2:]] == [("nm-2-4", "reference"), ("nm-1-4-w2", "reference")]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_dtype_takes_the_place_of_the_suites(tiny, tmp_path, dtype):
    result = _bench(tmp_path, "--dtype", dtype)
    assert result.exit_code == 0, result.output
    record = load(tmp_path / "r.json")
    assert {r.workload.dtype for r in record.results} == {dtype}
    assert [r.function for r in record.results] == ["sdpa", "unfused", "dense", "nm-1-2"]


@pytest.mark.parametrize("dtype", ["float64", "tf32", ""])
def test_a_dtype_that_there_is_not_is_refused(tiny, tmp_path, dtype):
    result = _bench(tmp_path, "--dtype", dtype)
    assert result.exit_code == 2
    assert f"dtype must be one of float32, bfloat16, float16 on cpu: got {dtype!r}" in result.output
    assert not list(tmp_path.iterdir())


def test_wrong_kernel_fails_the_command(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(run, "attention", lambda query, key, value, method, **rest: value)
    result = _bench(tmp_path)
    assert result.exit_code == 1
    assert result.output.count("WRONG:") == 2


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_gpu_the_reason_is_said(tmp_path):
    result = _bench(tmp_path, "--device", "cuda")
    assert result.exit_code == 2
    assert "torch sees no CUDA device here" in result.output
    assert not list(tmp_path.iterdir())


def test_the_page_does_not_take_the_records_place(tiny, tmp_path):
    result = _bench(tmp_path, "--report", str(tmp_path / "r.json"))
    assert (result.exit_code, list(tmp_path.iterdir())) == (2, [])
    assert "must be two files" in " ".join(result.output.split())
    assert _bench(tmp_path, "--output", "/dev/null", "--report", "/dev/null").exit_code == 0


@pytest.mark.parametrize("arguments", [("--device", "tpu"), ("--suite", "fast"), ("--methods", "top-k")])
def test_unknown_names_are_explained(arguments, tmp_path):
    result = _bench(tmp_path, *arguments)
    assert result.exit_code == 2
    assert arguments[1] in result.output
