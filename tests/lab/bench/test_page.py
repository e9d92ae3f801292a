"""The page of a run is whole and stands alone."""

from __future__ import annotations

from dynattn.lab.bench.page import page
from dynattn.lab.bench.record import load, save
from dynattn.lab.bench.table import mistakes, note
from dynattn.lab.machine import describe


def test_a_gpus_page_and_words(gpu_record, tmp_path):
    save(gpu_record, tmp_path / "r.json")
    assert load(tmp_path / "r.json") == gpu_record
    html = page(gpu_record)
    assert "the fastest dense attention" in html
    assert "on A GPU" in html
    assert "cannot" in html
    assert describe(gpu_record.machine).startswith("A GPU, 132 multiprocessors, driver 580, CUDA 13, cuDNN 9; torch")
    assert "CUDA graph" in note(gpu_record)


def test_page_is_whole_and_alone(record):
    html = page(record)
    assert html.count("<svg") == 2
    assert mistakes(record)[0] in html
    assert "12×2048×64" in html
    assert "http" not in html
