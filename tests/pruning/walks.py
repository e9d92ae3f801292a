"""Tiny decoders with random weights, and a slow walk through their layers, token lists in hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel

from dynattn.pruning.decoders import find

LENGTHS = (13, 9, 4)
WINDOW = 5  # of mistral's layers


def decoder(kind: str = "llama", layers: int = 3) -> Any:
    """A model in eval mode whose attention is far from even, in float64, as its states are large."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "hidden_size": 32, "num_hidden_layers": layers, "num_attention_heads": 4, "num_key_value_heads": 2,
        "head_dim": 8, "intermediate_size": 48, "vocab_size": 60, "initializer_range": 0.3, "pad_token_id": 0,
        "max_position_embeddings": 64,
    }  # fmt: skip
    if kind == "mistral":
        sizes["sliding_window"] = WINDOW
    return AutoModel.from_config(AutoConfig.for_model(kind, **sizes)).double().eval()


def texts(side: str = "right", lengths: tuple[int, ...] = LENGTHS) -> dict[str, Tensor]:
    """A padded batch."""
    torch.manual_seed(1)
    ids = torch.randint(5, 60, (len(lengths), max(lengths)))
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    mask = mask if side == "right" else mask.flip(1)
    return {"input_ids": ids.masked_fill(~mask, 0), "attention_mask": mask.long()}


def watch(model: nn.Module, given: dict[str, Tensor]) -> list[tuple[Tensor, Tensor]]:
    """What goes into each layer and comes out of it, at full length."""
    seen: list[Any] = []
    hooks = [
        layer.register_forward_hook(lambda _, args, out: seen.append((args[0], out))) for layer in find(model).layers
    ]
    with torch.no_grad():
        model(**given)
    for hook in hooks:
        hook.remove()
    return seen


@torch.no_grad()
def walk(model: Any, states: Tensor, choose: Callable[[int], list[int]], first: int = 0) -> Tensor:
    """The last layer's output for one text, each layer on the tokens that ``choose`` lists.

    Args:
        model: the model, whose attention is ``sdpa``.
        states: (tokens, width), what goes into the first layer.
        choose: given the layer, the tokens that run it.
        first: the position of the first token, as a left-padded batch has it.
    """
    states = states.clone()
    for index, layer in enumerate(find(model).layers):
        rows = choose(index)
        if not rows:
            continue
        places = torch.tensor(rows) + first
        mask = places[:, None] >= places
        if model.config.model_type == "mistral":
            mask = mask & (places[:, None] - places < WINDOW)
        before = states[rows][None]
        rotary = model.rotary_emb(before, position_ids=places[None])
        states[rows] = layer(before, attention_mask=mask[None, None], position_embeddings=rotary)[0]
    return states
