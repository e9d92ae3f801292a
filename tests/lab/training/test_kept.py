"""What a finished run left, damaged: each file is named, with what to do."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

pytest.importorskip("accelerate")

from dynattn.lab.training import kept
from dynattn.lab.training.results import Run
from tests.lab.training.tiny import ITEMS, Tiny

GOOD = Run(seed=0, scores=[0.5] * ITEMS, curve=[], losses=[]).model_dump()


def test_a_whole_result_is_read(tmp_path: Path):
    (tmp_path / "result.json").write_text(json.dumps(GOOD))
    assert kept.read_run(tmp_path / "result.json", Tiny(), "again").scores == GOOD["scores"]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (json.dumps(GOOD)[:40], "must hold JSON: it is cut short"),
        ("[]", "must hold a Run"),
        (json.dumps(GOOD | {"scores": [0.5]}), f"a finite score for each of {ITEMS} items: it holds 1, 1 of them"),
        (json.dumps(GOOD | {"scores": []}), "it holds 0"),
        (json.dumps(GOOD | {"scores": [float("nan")] * ITEMS}), f"it holds {ITEMS}, 0 of them finite"),
        (json.dumps(GOOD | {"more": 1}), "more: extra inputs are not permitted"),
    ],
)
def test_a_damaged_result_is_named(tmp_path: Path, content: str, reason: str):
    path = tmp_path / "result.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=reason) as caught:
        kept.read_run(path, Tiny(), "delete it")
    assert str(path) in str(caught.value)
    assert str(caught.value).endswith("; delete it")


@pytest.mark.parametrize("content", [b"", b"text", None, "list", "other"])
def test_damaged_weights_are_named(tmp_path: Path, content):
    model = torch.nn.Linear(2, 2)
    kept.keep(model, tmp_path)
    path = tmp_path / "weights.pt"
    if content in ("list", "other"):
        torch.save([1] if content == "list" else torch.nn.Linear(3, 3).state_dict(), path)
    else:
        path.write_bytes(path.read_bytes()[:300] if content is None else content)
    with pytest.raises(ValueError, match=r"weights\.pt must hold the run's weights: .*; delete the folder") as caught:
        kept.load_kept(model, tmp_path)
    assert "\n" not in str(caught.value)


def test_no_weights_are_told(tmp_path: Path):
    with pytest.raises(ValueError, match=r"has no weights\.pt; delete the folder"):
        kept.load_kept(torch.nn.Linear(2, 2), tmp_path)
