"""A race times forwards alone, each with its own method."""

from __future__ import annotations

import time
from contextlib import contextmanager

import pytest
import torch

pytest.importorskip("transformers")
pytest.importorskip("pydantic")

from transformers import BertConfig, BertModel

from dynattn.integrations.transformers import observing
from dynattn.lab.frontier import race as module
from dynattn.lab.frontier.apply import applied
from dynattn.lab.frontier.cell import Entry, Exam, Race
from dynattn.lab.models import Pretrained
from dynattn.lab.tasks import Prepared

SETTING = 0.3  # seconds, far above a forward of this model


def test_what_applying_a_method_takes_is_not_timed(monkeypatch):
    config = BertConfig(vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=32)
    pretrained = Pretrained("tiny", BertModel(config).eval(), None, "encoder", "a tiny model")
    data = Prepared(("one",), 1, ({"input_ids": torch.ones(1, 20, dtype=torch.long)},), 20, "one text", None)

    @contextmanager
    def slow(pretrained, name):
        time.sleep(SETTING)
        with applied(pretrained, name):
            yield

    monkeypatch.setattr(module, "applied", slow)
    monkeypatch.setattr(module, "prepare", lambda job, exam: (pretrained, None, data))
    exam = Exam(model="tiny", phase="prefill", task="retrieval", tokens=20, items=1, texts=None)
    wanted = Race(exam=exam, entry=Entry(name="nm-1-2", family="nm", budget=0.5), machine="here")
    calls = []
    with observing(calls.append):
        found = module.race(module.SweepJob("tiny", None, "float32"), wanted, 0.01)
    assert found.seconds.median < SETTING
    assert found.dense.median < SETTING
    assert found.length == 20
    assert [call.method.name for call in calls] == ["nm-1-2"] * 2 * (1 + found.samples)  # two layers; one to warm up
