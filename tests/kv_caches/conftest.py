"""A tiny decoder and its tokens."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("transformers")

from transformers import LlamaConfig, LlamaForCausalLM

from dynattn.integrations.transformers import register
from tests.kv_caches.oracle import LAYERS, PROMPT


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=97, hidden_size=48, intermediate_size=64, num_hidden_layers=LAYERS, num_attention_heads=6,
        num_key_value_heads=2, initializer_range=0.4, eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    register()
    return LlamaForCausalLM(config).eval()


@pytest.fixture(scope="module")
def ids():
    return torch.randint(1, 97, (2, PROMPT + 24), generator=torch.Generator().manual_seed(1))
