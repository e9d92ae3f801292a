"""A tiny decoder with random weights, and tokens for it."""

from __future__ import annotations

from typing import Any

import torch

from dynattn.lab.decode.prompt import PIECE

PROMPT = 80


def decoder() -> Any:
    """Eight layers of six heads on two key heads."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=97, hidden_size=48, intermediate_size=64, num_hidden_layers=8, num_attention_heads=6,
        num_key_value_heads=2, initializer_range=0.4,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def tokens() -> torch.Tensor:
    """(1, PROMPT + PIECE + 20): a prompt and what follows."""
    return torch.randint(1, 97, (1, PROMPT + PIECE + 20), generator=torch.Generator().manual_seed(1))
