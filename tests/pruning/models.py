"""Tiny models with random weights, one of each kind that can be pruned, and a slow walk through their layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel

from dynattn.pruning.layout import SUPPORTED, find

VISION = ("deit", "dinov2", "dinov2_with_registers", "ijepa", "vit", "vit_msn")
TEXT = tuple(kind for kind in SUPPORTED if kind not in VISION)


def close(actual: Tensor, expected: Tensor) -> None:
    """Equal up to float32's rounding over a few layers."""
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


def make(kind: str, layers: int = 4) -> Any:
    """A model in eval mode whose attention is far from even."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "hidden_size": 32, "num_hidden_layers": layers, "num_attention_heads": 4, "initializer_range": 0.3,
    }  # fmt: skip
    if kind in VISION:
        sizes |= {"image_size": 28, "patch_size": 7, "intermediate_size": 64, "mlp_ratio": 2}
    else:
        sizes |= {"vocab_size": 60, "intermediate_size": 64, "max_position_embeddings": 64, "pad_token_id": 1}
    return AutoModel.from_config(AutoConfig.for_model(kind, **sizes)).eval()


def inputs(kind: str, lengths: tuple[int, ...] = (17, 12, 5)) -> dict[str, Tensor]:
    """A padded batch of texts, or pictures of 16 patches."""
    torch.manual_seed(1)
    if kind in VISION:
        return {"pixel_values": torch.randn(len(lengths), 3, 28, 28)}
    ids = torch.randint(5, 60, (len(lengths), max(lengths)))
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    return {"input_ids": ids.masked_fill(~mask, 1), "attention_mask": mask.long()}


def ends(model: nn.Module, given: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """What goes into the first layer and comes out of the last one, at full length."""
    blocks, seen = find(model).layers, {}
    hooks = [
        blocks[0].layer.register_forward_pre_hook(lambda _, args: seen.update(first=args[0])),
        blocks[-1].layer.register_forward_hook(lambda _, args, out: seen.update(last=out)),
    ]
    with torch.no_grad():
        model(**given)
    for hook in hooks:
        hook.remove()
    last = seen["last"]
    return seen["first"], last[0] if isinstance(last, tuple) else last


@torch.no_grad()
def walk(model: nn.Module, first: Tensor, choose: Callable[[int, list[int], Tensor], list[int]]) -> Tensor:
    """The last layer's output for one sample, layer by layer, on a list of the tokens that are left.

    Args:
        model: the model.
        first: (tokens, width), one sample without padding.
        choose: given the layer, the places of its tokens and its input, says who goes on.
    """
    state, places = first.clone(), list(range(len(first)))
    for index, block in enumerate(find(model).layers):
        before = state[places].clone()
        out = block.layer(before.unsqueeze(0))
        state[places] = (out[0] if isinstance(out, tuple) else out).reshape(len(places), -1)
        places = choose(index, places, before)
    return state


@torch.no_grad()
def weights(model: nn.Module, layer: int, before: Tensor) -> tuple[Tensor, Tensor]:
    """P, (heads, tokens, tokens), and V, (heads, tokens, head_dim), of one layer for one sample, head by head.

    For models whose layer norm, if any, comes after the attention.
    """
    layout = find(model)
    block, wide = layout.layers[layer], before.shape[1] // layout.heads
    q, k, v = (projection(before) for projection in (block.query, block.key, block.value))
    maps, values = [], []
    for head in range(layout.heads):
        of = slice(head * wide, (head + 1) * wide)
        maps.append(torch.softmax(q[:, of] @ k[:, of].T / wide**0.5, dim=1))
        values.append(v[:, of])
    return torch.stack(maps), torch.stack(values)
