"""The script that trains FTP's routers and measures them, in small."""

from __future__ import annotations

import json
from functools import partial

import pytest

pytest.importorskip("transformers")

from dynattn.lab.models import load
from dynattn.lab.tasks import Perplexity
from dynattn.lab.tasks.texts import read


def test_routers_are_trained_once_measured_and_told(script, monkeypatch, tmp_path, tiny_decoder, many_texts):
    ftp = script("ftp")
    pretrained, task = load(str(tiny_decoder)), Perplexity(items=2, tokens=32, texts=read(many_texts))
    changes = {
        "RECORD": tmp_path / "ftp.json", "PAGE": tmp_path / "page.md", "SPARSITIES": (0.1,), "TOKENS": 24, "STEPS": 2,
        "TIMED": 16, "interleaved": partial(ftp.interleaved, rounds=2, min_sample=None),
        "of_layers": lambda model, sparsity: sparsity,  # it has two layers
    }  # fmt: skip
    for name, value in changes.items():
        monkeypatch.setattr(ftp, name, value)
    ftp.PAGE.write_text(f"before\n{ftp.START}\n{ftp.END}\nafter\n")
    ftp.main(["table"])
    assert "Not measured yet." in ftp.PAGE.read_text()
    said: list[str] = []
    for _ in range(2):
        ftp.train(pretrained, task, tmp_path, said.append)
    assert len(said) == 1  # the second time it is there
    ftp.measure(pretrained, task, tmp_path)
    found = json.loads(ftp.RECORD.read_text())
    (row,) = found["rows"]
    assert row["skipped"] == pytest.approx(1 - sum(row["shares"]) / len(row["shares"]))
    assert row["more"]["mean"] == pytest.approx(row["nll"] - found["dense"])
    assert row["lot_more"]["mean"] == pytest.approx(row["lot"] - found["dense"])
    ftp.main(["table"])
    page = ftp.PAGE.read_text()
    assert f"| router for 0.1 | {row['skipped']:.2f} | {row['nll']:.3f} |" in page
    assert page.endswith("after\n")


def test_the_first_and_the_last_layer_run_whole_and_the_mean_is_kept(script):
    from types import SimpleNamespace

    model = SimpleNamespace(config=SimpleNamespace(num_hidden_layers=30))
    found = script("ftp").of_layers(model, 0.2)
    assert (len(found), found[0], found[-1]) == (30, 0.0, 0.0)
    assert sum(found) / 30 == pytest.approx(0.2, abs=1e-4)
