"""A slow oracle of caches that forget: full attention over a full cache, masked where a token was evicted."""

from __future__ import annotations

import math

import pytest
import torch

pytest.importorskip("transformers")

from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask

from dynattn.kv_caches import SpAttenCache, WindowCache

LAYERS = 4
PROMPT = 24


class Oracle:
    """Dense attention in its plainest form; tells what tokens receive, and hides those that are not visible.

    Attributes:
        visible: layer to bool (batch, tokens), or (batch, kv_heads, tokens); tokens beyond are visible.
        received: (batch, tokens), over all layers, heads, queries and steps.
    """

    def __init__(self, batch: int) -> None:
        self.visible: dict[int, torch.Tensor] = {}
        self.received = torch.zeros(batch, 200)
        AttentionInterface.register("oracle", self.attend)
        AttentionMaskInterface.register("oracle", self.mask)

    @staticmethod
    def mask(**kwargs):
        return sdpa_mask(**{**kwargs, "allow_is_causal_skip": False})

    def attend(self, module, query, key, value, attention_mask, scaling, **kwargs):
        groups = query.shape[1] // key.shape[1]
        s = scaling * query @ key.repeat_interleave(groups, 1).mT
        s = s.masked_fill(~attention_mask, -math.inf)
        hidden = self.visible.get(module.layer_idx)
        if hidden is not None:
            known = hidden.shape[-1]
            by_head = hidden[:, None] if hidden.dim() == 2 else hidden.repeat_interleave(groups, 1)
            s[..., :known] = s[..., :known].masked_fill(~by_head[:, :, None], -math.inf)
        p = s.softmax(-1).nan_to_num(0.0)
        self.received[:, : key.shape[2]] += p.sum((1, 2))
        return (p @ value.repeat_interleave(groups, 1)).transpose(1, 2), None


def windowed(every: int):
    return lambda config: WindowCache(window=7, sinks=2, every=every)


def spatten(every: int, recent: int = 3):
    return lambda config: SpAttenCache(config, keep=0.3, recent=recent, every=every)


@torch.no_grad()
def steps(model, cache, ids, sizes, implementation, mask=None, before=lambda: None):
    """Logits of the prompt and of each step; ``sizes`` are the steps' numbers of tokens."""
    model.set_attn_implementation(implementation)
    out, start = [], 0
    for size in sizes:
        before()
        end = start + size
        seen = None if mask is None else mask[:, :end]
        out.append(model(ids[:, start:end], past_key_values=cache, attention_mask=seen, use_cache=True).logits)
        start = end
    return torch.cat(out, 1)


CACHES = [
    pytest.param(windowed(1), id="window"), pytest.param(windowed(5), id="window-every-5"),
    pytest.param(spatten(1), id="spatten"), pytest.param(spatten(4), id="spatten-every-4"),
    pytest.param(spatten(2, recent=0), id="spatten-nothing-protected"),
]  # fmt: skip
