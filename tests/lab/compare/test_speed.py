"""The model's forward is timed alone, each time with its own attention; the shares are of the timed forwards."""

from __future__ import annotations

import time

import pytest
import torch

pytest.importorskip("transformers")

from transformers import BertConfig, BertModel

from dynattn.integrations.transformers import observing, register
from dynattn.lab.compare.speed import attention_alone, batched, end_to_end
from dynattn.lab.models import Pretrained

SETTING = 0.3  # seconds, far above a forward of this model
WAYS = {"sdpa": "sdpa", "nm-1-2": "dynattn:nm-1-2", "unfused": "eager"}
INPUTS = {"input_ids": torch.ones(1, 20, dtype=torch.long)}


@pytest.fixture
def tiny() -> Pretrained:
    register("nm-1-2")
    config = BertConfig(vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=32)
    return Pretrained("tiny", BertModel(config).eval(), None, "encoder", "a tiny model")


def test_what_setting_a_model_takes_is_not_timed(tiny, monkeypatch):
    set_implementation = tiny.model.set_attn_implementation

    def slow(name):
        time.sleep(SETTING)
        set_implementation(name)

    monkeypatch.setattr(tiny.model, "set_attn_implementation", slow)
    calls, rounds = [], []
    with observing(calls.append):
        timed, shares = end_to_end(tiny, WAYS, INPUTS, 20, 0.01, rounds.append)
    assert [row.method for row in timed.rows] == list(WAYS)
    assert all(row.seconds.median < SETTING for row in timed.rows)
    assert len(calls) == 2 * (1 + len(rounds))  # two layers, in a forward to warm up and in each round
    assert all(row.samples == len(rounds) for row in timed.rows)
    assert [share.method for share in shares] == ["sdpa", "nm-1-2"]  # a model's own eager attention cannot be wrapped
    assert all(0 < share.attention < share.forward < SETTING for share in shares)


def test_attention_alone_runs_the_calls_of_every_layer(tiny):
    calls = []
    with observing(calls.append):
        timed = attention_alone(tiny, {"sdpa": "sdpa", "nm-1-2": "dynattn:nm-1-2"}, INPUTS, 20, 0.01, lambda _: None)
    assert timed.calls == 2
    assert calls
    assert {call.query.shape for call in calls} == {(1, 4, 20, 8)}


def test_batched_repeats_tensors_and_leaves_flags():
    found = batched({"input_ids": torch.arange(3)[None], "use_cache": False}, 2)
    assert found["input_ids"].tolist() == [[0, 1, 2], [0, 1, 2]]
    assert found["use_cache"] is False
