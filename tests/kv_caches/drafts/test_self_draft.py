"""The model as its own draft: sparse, with fewer layers, and afterwards as it was."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")

from transformers import GPT2Config, GPT2LMHeadModel

from dynattn import NM
from dynattn.integrations.transformers import register
from dynattn.kv_caches.drafts import SelfDraft, continuation
from dynattn.kv_caches.drafts.self_draft import drafting
from dynattn.methods import parse


@torch.no_grad()
def _logits(model, ids):
    return model(ids, use_cache=False).logits


def test_it_attends_by_its_method_and_leaves_the_model_as_it_was(model, ids):
    model.set_attn_implementation("dynattn:nm-1-2")
    expected = _logits(model, ids)
    model.set_attn_implementation("dynattn:dense")
    dense = _logits(model, ids)
    with SelfDraft(NM(1, 2)).of(model) as draft:
        assert torch.equal(_logits(draft, ids), expected)
    assert torch.equal(_logits(model, ids), dense)
    with pytest.raises(RuntimeError, match="stop"), SelfDraft(layers=2).of(model):
        raise RuntimeError("stop")
    assert torch.equal(_logits(model, ids), dense)


def test_the_first_layers_and_the_last_stay(model, ids):
    model.set_attn_implementation("dynattn:dense")
    small = copy.deepcopy(model)
    small.model.layers = torch.nn.ModuleList([small.model.layers[i] for i in (0, 1, 3)])
    attention: Any = small.model.layers[2].self_attn
    attention.layer_idx = 2
    with SelfDraft(parse("dense"), layers=3).of(model) as draft:
        assert torch.equal(_logits(draft, ids), _logits(small, ids))
        assert continuation(draft, ids, 5).tolist() == continuation(small, ids, 5).tolist()
    assert len(model.model.layers) == 4


def test_another_model_drafts_as_it_is(model):
    other = copy.deepcopy(model)
    with drafting(other, model) as draft:
        assert draft is other
    with drafting(None, model) as draft:
        assert draft is model


def test_what_cannot_be_is_refused(model):
    with pytest.raises(ValueError, match="SelfDraft: layers must be at least 2: got 1"):
        SelfDraft(layers=1)
    model.set_attn_implementation("dynattn:dense")
    with pytest.raises(
        ValueError, match=r"must be at most those of the model's decoder\.layers: got 9, LlamaModel has 4"
    ):
        SelfDraft(layers=9).of(model).__enter__()
    register()
    gpt = GPT2LMHeadModel(GPT2Config(n_layer=2, n_head=2, n_embd=16, vocab_size=30))
    gpt.set_attn_implementation("dynattn:dense")
    with pytest.raises(ValueError, match=r"got 2, GPT2Model has none"):
        SelfDraft(layers=2).of(gpt).__enter__()
    model.set_attn_implementation("sdpa")
    with pytest.raises(ValueError, match="SelfDraft: the model must attend by this project's attention: got 'sdpa'"):
        SelfDraft().of(model).__enter__()
