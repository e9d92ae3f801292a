"""The greedy continuation is what ``generate`` writes."""

from __future__ import annotations

from typing import Any

import pytest
import torch

pytest.importorskip("transformers")

from transformers import GPT2Config, GPT2LMHeadModel

from dynattn.kv_caches.drafts import continuation
from tests.kv_caches.oracle import PROMPT


@pytest.mark.parametrize(("kind", "padding"), [("llama", 0), ("gpt2", 6)])  # the second one's positions are learned
def test_it_is_what_generate_writes(model: Any, ids, kind, padding):
    if kind == "gpt2":
        torch.manual_seed(0)
        config = GPT2Config(n_layer=2, n_head=2, n_embd=16, vocab_size=97, initializer_range=0.5, eos_token_id=None)
        model = GPT2LMHeadModel(config).eval()
    model.set_attn_implementation("sdpa")
    mask = torch.ones(2, PROMPT, dtype=torch.int64)
    mask[1, :padding] = 0
    asked = {"max_new_tokens": 4, "do_sample": False, "attention_mask": mask, "pad_token_id": 0}
    expected = model.generate(ids[:, :PROMPT], **asked)[:, PROMPT:]
    found = continuation(model, ids[:, :PROMPT], 4, mask if padding else None)
    assert found.tolist() == expected.tolist()
    assert continuation(model, ids[:, :PROMPT], 0).shape == (2, 0)


def test_it_stops_where_every_text_has_ended(model, ids, monkeypatch):
    model.set_attn_implementation("sdpa")
    whole = continuation(model, ids[:, :PROMPT], 8)
    for ends in (int(whole[0, 2]), [int(whole[0, 2]), 96]):
        monkeypatch.setattr(model.generation_config, "eos_token_id", ends)
        first = whole[0].tolist().index(int(whole[0, 2])) + 1
        assert continuation(model, ids[:1, :PROMPT], 8).tolist() == whole[:1, :first].tolist()
    monkeypatch.setattr(model.generation_config, "eos_token_id", whole[:, 3].tolist())
    both = continuation(model, ids[:, :PROMPT], 8)
    assert both.shape[1] <= 4
    assert both.tolist() == whole[:, : both.shape[1]].tolist()


def test_a_number_of_tokens_is_none_below_0(model, ids):
    with pytest.raises(ValueError, match="continuation: tokens must be at least 0: got -1"):
        continuation(model, ids, -1)
