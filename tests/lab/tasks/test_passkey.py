"""The passkey stands at its depth and is all that is scored."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

pytest.importorskip("transformers")

from dynattn.lab.models import load
from dynattn.lab.tasks.passkey import Passkey
from dynattn.lab.tasks.texts import read


def _nothing() -> None: ...


def test_passkey_hides_the_key_at_its_depth_and_scores_it_alone(tiny_decoder: Path, texts: Path):
    pretrained = load(str(tiny_decoder))
    task = Passkey(items=2, tokens=120, texts=read(texts))
    data = task.prepare(pretrained)
    assert data.labels == ("depth 10%", "depth 90%")
    needle = pretrained.processor("The secret pass key is")["input_ids"]
    found = []
    for ids, answer in data.payload:
        assert ids.shape == (1, 120)
        row = ids[0].tolist()
        found.append(next(i for i in range(120) if row[i : i + len(needle)] == needle))
        with torch.no_grad():
            logits = pretrained.model(input_ids=ids).logits[0, -answer - 1 : -1]
        expected = torch.nn.functional.cross_entropy(logits, ids[0, -answer:]).item()
        scores = task.evaluate(pretrained, data, _nothing).scores
        assert scores is not None
        assert expected == pytest.approx(scores[len(found) - 1], rel=1e-5)
    assert found[0] < 20 < 70 < found[1]
    with pytest.raises(ValueError, match="leave room"):
        Passkey(items=1, tokens=10, texts=read(texts)).prepare(pretrained)
