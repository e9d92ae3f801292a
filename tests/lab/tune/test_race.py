"""The race times forwards alone, each with its own attention."""

from __future__ import annotations

import time

import pytest
import torch

pytest.importorskip("transformers")

from transformers import BertConfig, BertModel

from dynattn.integrations.transformers import attention_modules, observing, register
from dynattn.lab.models import Pretrained
from dynattn.lab.tune import race as module
from dynattn.lab.tune.race import race

SETTING = 0.3  # seconds, far above a forward of this model


def test_what_setting_a_model_takes_is_not_timed(monkeypatch):
    register()
    config = BertConfig(vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=32)
    pretrained = Pretrained("tiny", BertModel(config).eval(), None, "encoder", "a tiny model")
    set_assignment = module.set_assignment

    def slow(*arguments):
        time.sleep(SETTING)
        return set_assignment(*arguments)

    monkeypatch.setattr(module, "set_assignment", slow)
    assignment = {name: ["nm-1-2"] * 4 for name in attention_modules(pretrained.model)}
    calls = []
    with observing(calls.append):
        found = race(pretrained, assignment, {"input_ids": torch.ones(1, 20, dtype=torch.long)}, rounds=3)
    assert found.tuned.median < SETTING
    assert found.dense.median < SETTING
    assert found.rounds == 3
    assert [call.method.name for call in calls] == ["nm-1-2"] * 2 * 4  # two layers; three rounds and one to warm up
    assert pretrained.model.config._attn_implementation == "sdpa"
