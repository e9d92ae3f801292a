"""The script that simulates proofs, in small."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"


def test_every_way_is_simulated_on_every_null_and_truth_and_told(monkeypatch, tmp_path):
    pytest.importorskip("scipy")
    monkeypatch.syspath_prepend(str(FOLDER))
    monkeypatch.delitem(sys.modules, "proof", raising=False)
    proof = importlib.import_module("proof")
    monkeypatch.setattr(proof, "RECORD", tmp_path / "proof.json")
    monkeypatch.setattr(proof, "PAGE", tmp_path / "page.md")
    monkeypatch.setattr(proof, "RUNS", 20)
    monkeypatch.setattr(proof, "AT_ONCE", 20)
    monkeypatch.setattr(sys, "argv", ["proof.py"])
    proof.main()
    proof.PAGE.write_text("before\n<!-- written by benchmarks/proof.py -->\n<!-- end -->\nafter\n")
    monkeypatch.setattr(sys, "argv", ["proof.py", "table"])
    proof.main()
    page = proof.PAGE.read_text()
    for name in (*proof.WAYS, *proof.null_of_perplexity(), *proof.null_of_scores(), *proof.true_claims()):
        assert name in page
    assert page.endswith("after\n")
