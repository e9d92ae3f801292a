"""SpecKV: the cache is cut by what the end of the prompt and a draft of the answer attend to.

The target reads n tokens of a prompt and L tokens of a draft. In each layer, by key head:

    received_j = max over the last ``window`` + 1 + L queries and the query heads of a key head      (j before them)
    score      = max of received over ``pool`` neighbouring tokens
    held       = { latest ``window`` before the last token } ∪ { best of those before: capacity - window }

The draft's own entries go, and so does the last token's, which ``generate`` feeds again. Of equal scores, the earlier
token's wins.

Source: arXiv:2506.08373. Left out here: sparse attention over long prompts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from dynattn.integrations.transformers import Call
from dynattn.kv_caches.counts import check_counts, check_odd
from dynattn.kv_caches.cut_once import CutOnceCache, CutOnceLayer
from dynattn.kv_caches.drafts.greedy import continuation, extended, forward
from dynattn.kv_caches.drafts.self_draft import SelfDraft, check_ours, drafting
from dynattn.kv_caches.full import FullCache
from dynattn.kv_caches.layer import LayeredCache
from dynattn.kv_caches.observed import best, observed, text_of


@dataclass(frozen=True)
class SpecKV:
    """Reads a prompt and a draft of what follows, and holds what the two attend to.

        model.set_attn_implementation("dynattn:dense")
        cache = SpecKV(lookahead=64, capacity=256, draft=SelfDraft()).read(model, **prompt)
        model.generate(**prompt, past_key_values=cache, max_new_tokens=64)

    Without a draft, the lookahead is what the target itself writes after the whole prompt. It shows what a perfect
    draft would give, and gains no time, since the answer is written first.

    Args:
        lookahead: how many tokens are drafted; no more than will be generated, since a guess about anything else
            misleads. 0 for none: then the prompt's own last queries choose.
        capacity: how many tokens each key head holds.
        window: how many of the prompt's latest tokens are always held, and choose.
        pool: the score of so many neighbouring tokens is the largest of theirs; odd.
        draft: a :class:`SelfDraft`, or another Transformers decoder with the same tokenizer; None for the target.

    Raises:
        TypeError: a number is no int.
        ValueError: a number is out of range.
    """

    lookahead: int
    capacity: int = 256
    window: int = 32
    pool: int = 7
    draft: SelfDraft | nn.Module | None = None

    def __post_init__(self) -> None:
        check_counts("SpecKV", capacity=self.capacity, window=self.window, pool=self.pool)
        check_counts("SpecKV", least=0, lookahead=self.lookahead)
        check_odd("SpecKV", pool=self.pool)
        if self.window >= self.capacity:
            raise ValueError(
                f"SpecKV: capacity must be above window: got {self.capacity}, {self.window}; pass a smaller window"
            )

    @torch.no_grad()
    def read(
        self, model: Any, input_ids: Tensor, attention_mask: Tensor | None = None, ahead: Tensor | None = None
    ) -> LayeredCache:
        """Read a prompt, and hold what is chosen.

        Args:
            model: the target, a Transformers decoder with one of this project's attention implementations.
            input_ids: (batch, tokens).
            attention_mask: (batch, tokens) 0 where a token is padding, on the left; None where none is.
            ahead: (batch, any number) tokens of a lookahead that is there already; None to have it drafted.

        Returns:
            A cache for ``generate`` with the same prompt. It has read all of it but its last token; or nothing, where
            the prompt is no longer than ``capacity`` and nothing has to go.

        Raises:
            ValueError: the model's attention is not this project's, or a batch is padded on the right.
        """
        check_ours(model, "SpecKV")
        if input_ids.shape[1] <= self.capacity:
            return FullCache()
        if ahead is None:
            with drafting(self.draft, model) as draft:
                ahead = continuation(draft, input_ids, self.lookahead, attention_mask)
        cache = SpecKVCache(ahead.shape[1], self.capacity, self.window, self.pool)
        forward(model, torch.cat([input_ids, ahead], 1), extended(attention_mask, ahead.shape[1]), cache)
        cache.check_told()
        return cache


class SpecKVCache(CutOnceCache):
    """What :meth:`SpecKV.read` fills. Its first forward must be a prompt longer than ``capacity``, with the lookahead
    behind it.

    Args:
        ahead: tokens of the lookahead.
        capacity, window, pool: see :class:`SpecKV`.
    """

    def __init__(self, ahead: int, capacity: int, window: int, pool: int) -> None:
        super().__init__(layer_class_to_replicate=partial(_SpecKVLayer, ahead, capacity, window, pool))  # type: ignore[arg-type]


class _SpecKVLayer(CutOnceLayer):
    def __init__(self, ahead: int, capacity: int, window: int, pool: int) -> None:
        super().__init__()
        self.ahead, self.capacity, self.window, self.pool = ahead, capacity, window, pool
        self.spent = False  # whether a prompt was read, after which there is no other

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if self.prompt is None and self.spent:
            raise ValueError(
                "SpecKVCache: a prompt must be read by SpecKV.read, together with its lookahead: this cache was reset; "
                "call read again, which makes a new one"
            )
        return super().update(key_states, value_states, *args, **kwargs)

    def cut(self, call: Call) -> None:
        self.spent = True
        tokens = self.seen - self.ahead
        before = tokens - 1 - self.window  # the tokens that are chosen among
        text = text_of(call, tokens, "SpecKV")[:, None, :before]
        received = observed(call, self.window + 1 + self.ahead, "max")[..., :before]
        score = nn.functional.max_pool1d(received, self.pool, 1, self.pool // 2).masked_fill(~text, -math.inf)
        chosen = best(score, self.capacity - self.window)
        latest = torch.arange(before, tokens - 1, device=chosen.device).expand(*chosen.shape[:2], -1)
        self.evict(torch.cat([chosen, latest], -1))
        self.seen = tokens - 1
