"""benchmarks/sirius.py on a tiny model: every way writes, is recorded once, and is told."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")
pytest.importorskip("pydantic")

from dynattn.integrations.transformers import register
from dynattn.lab import calibration
from dynattn.lab.models import load
from dynattn.lab.tasks.texts import read


def test_ways_are_recorded_once_timed_and_told(
    script: Any, tiny_decoder: Path, many_texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    sirius = script("sirius")
    texts = read(many_texts)
    monkeypatch.setattr(calibration, "wikipedia", lambda: texts[-2:])
    quick = partial(sirius.interleaved, rounds=2, min_sample=None)
    densities = {"layers 2": 1.0, "neurons 0.5": 0.6, "weights wanda-0.7": 0.7, "inputs nmact-2-4": 0.5}
    changes = {
        "RECORD": tmp_path / "sirius.json", "PROMPT": 24, "NEW": 4, "KERNEL": 4, "DENSITIES": densities,
        "interleaved": quick, "wikipedia": lambda: texts[:2],
    }  # fmt: skip
    for name, value in changes.items():
        monkeypatch.setattr(sirius, name, value)
    assert sirius.table() == "Not measured yet."
    register()
    pretrained = load(str(tiny_decoder))
    prompts = sirius.prompts(pretrained)
    assert [tuple(prompt.shape) for prompt in prompts] == [(1, 24)] * 2
    sirius.measure(pretrained, prompts)
    written = sirius.RECORD.read_text()
    sirius.measure(pretrained, prompts)
    assert sirius.RECORD.read_text() == written
    ways = json.loads(written)["ways"]
    assert len(ways) == 8
    whole = ways["layers 2, exact"]  # of a model with two layers, it is the model
    assert (whole["accepted"], whole["gained"], whole["density"]) == (4, 4, pytest.approx((4 + 1) / 4))
    assert "break-even" in sirius.table()
    threads = torch.get_num_threads()
    sirius.speed(pretrained.model, prompts[0])
    torch.set_num_threads(threads)
    ratio = json.loads(sirius.RECORD.read_text())["time"]["one"]["speedup"]["median"]
    assert f"| layers 2 | exact | 4.0 | 4.0 | {whole['density']:.2f} | {(4 - ratio) / 4:.2f} |" in sirius.table()
