"""A tiny decoder, and a prompt that it has read."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("transformers")

from transformers import LlamaConfig, LlamaForCausalLM

from dynattn.lab.decode.prompt import PIECE, read

PROMPT = 80


@pytest.fixture(scope="session")
def model():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=97, hidden_size=48, intermediate_size=64, num_hidden_layers=8, num_attention_heads=6,
        num_key_value_heads=2, initializer_range=0.4,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


@pytest.fixture(scope="session")
def ids():
    return torch.randint(1, 97, (1, PROMPT + PIECE + 20), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="session")
def prompt(model, ids):
    return read(model, ids[:, :PROMPT])
