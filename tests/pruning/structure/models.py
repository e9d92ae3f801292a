"""Tiny models with random weights of every form that parts can be removed of."""

from __future__ import annotations

import copy
import json
from functools import cache
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

LAYERS, HEADS, WIDTH, NEURONS, LENGTH = 3, 4, 32, 48, 7
_SIZES: dict[str, Any] = {"hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS}
_TEXT = {"vocab_size": 50, "max_position_embeddings": 64}
DECODERS: dict[str, dict[str, Any]] = {
    "llama": {**_SIZES, **_TEXT, "intermediate_size": NEURONS, "num_key_value_heads": 2, "attention_bias": True},
    "qwen3": {**_SIZES, **_TEXT, "intermediate_size": NEURONS, "num_key_value_heads": 2, "head_dim": 8},
    "gpt2": {**_TEXT, "n_embd": WIDTH, "n_layer": LAYERS, "n_head": HEADS, "n_inner": NEURONS, "n_positions": 64},
    "opt": {**_SIZES, **_TEXT, "ffn_dim": NEURONS, "word_embed_proj_dim": WIDTH, "do_layer_norm_before": False},
}  # fmt: skip
ENCODERS: dict[str, dict[str, Any]] = {
    "bert": {**_SIZES, **_TEXT, "intermediate_size": NEURONS},
    "roberta-prelayernorm": {**_SIZES, **_TEXT, "intermediate_size": NEURONS, "pad_token_id": 1},
    "distilbert": {**_TEXT, "dim": WIDTH, "n_layers": LAYERS, "n_heads": HEADS, "hidden_dim": NEURONS},
    "vit": {**_SIZES, "intermediate_size": NEURONS, "image_size": 16, "patch_size": 8},
}
KINDS = ("llama", "gpt2", "opt", "bert", "distilbert", "vit")
"""One of every form; others are told apart by what is found of them alone."""
SHARED = {"llama": 2, "qwen3": 2}
"""How many query heads share a key head, where more than one does."""


@cache
def _made(kind: str, changes: str) -> Any:
    torch.manual_seed(0)
    fields = {**DECODERS, **ENCODERS}[kind] | json.loads(changes)
    auto: Any = AutoModelForCausalLM if kind in DECODERS else AutoModel
    model = auto.from_config(AutoConfig.for_model(kind, **fields)).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight), alpha=0.2)
    return model


def make(kind: str, **changes: Any) -> Any:
    """A model in eval mode, with biases and norms that are not what they start as."""
    return copy.deepcopy(_made(kind, json.dumps(changes)))


def inputs(kind: str) -> dict[str, Any]:
    """Two texts, one of them padded where the model is an encoder; or two pictures."""
    torch.manual_seed(1)
    if kind == "vit":
        return {"pixel_values": torch.randn(2, 3, 16, 16)}
    ids = torch.randint(2, 50, (2, LENGTH))
    mask = torch.ones_like(ids)
    if kind in ENCODERS:
        mask[1, 5:] = 0
    return {"input_ids": ids, "attention_mask": mask}


@torch.no_grad()
def output(model: Any, given: dict[str, Any]) -> Tensor:
    """Logits, or last states; nothing at padding."""
    found = model(**given)
    out = found.logits if "logits" in found else found.last_hidden_state
    mask = given.get("attention_mask")
    return out if mask is None else out[mask.bool()]


def close(actual: Tensor, expected: Tensor) -> None:
    """Equal up to float32's rounding over a few layers."""
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)
