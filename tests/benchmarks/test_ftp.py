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
        "RECORD": tmp_path / "ftp.json", "PAGE": tmp_path / "page.md", "SPARSITIES": (0.3,), "TOKENS": 32, "STEPS": 2,
        "POPULATION": 2, "GENERATIONS": 2,
        "interleaved": partial(ftp.interleaved, rounds=2, min_sample=None),
    }  # fmt: skip
    for name, value in changes.items():
        monkeypatch.setattr(ftp, name, value)
    ftp.PAGE.write_text(f"before\n{ftp.START}\n{ftp.END}\nafter\n")
    ftp.main(["table"])
    assert "Not measured yet." in ftp.PAGE.read_text()
    said: list[str] = []
    for _ in range(2):
        ftp.train(pretrained, task, tmp_path, said.append)
    assert len(said) == 2  # of the schedule and of the router; the second time they are there
    ftp.measure(pretrained, task, tmp_path)
    found = json.loads(ftp.RECORD.read_text())
    (row,) = found["rows"]
    assert sum(row["schedule"]) == pytest.approx(0.3 * len(row["shares"]))
    assert row["distance"] >= 0
    assert row["lot_distance"] > 0
    assert row["skipped"] == pytest.approx(1 - sum(row["shares"]) / len(row["shares"]))
    assert row["more"]["mean"] == pytest.approx(row["nll"] - found["dense"])
    assert row["lot_more"]["mean"] == pytest.approx(row["lot"] - found["dense"])
    ftp.main(["table"])
    page = ftp.PAGE.read_text()
    assert f"| router for 0.3 | {row['skipped']:.2f} | {row['nll']:.3f} |" in page
    assert page.endswith("after\n")
