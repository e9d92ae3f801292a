"""SpecKV-PC: a prompt that SpecPC has shortened, and a cache of it that SpecKV cuts, by one draft.

The draft reads the whole prompt and goes on with ``lookahead`` tokens, once. All of its steps choose the tokens that
the target reads; and what it wrote follows them there, and chooses what the cache holds.

Source: the repository of arXiv:2506.08373, furiosa-ai/draft-based-approx-llm.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import Tensor

from dynattn.kv_caches.drafts.speckv import SpecKV
from dynattn.kv_caches.drafts.specpc import SpecPC
from dynattn.kv_caches.layer import LayeredCache


class Shortened(NamedTuple):
    """What to generate from: ``model.generate(**found._asdict())``.

    Attributes:
        input_ids: (batch, tokens) the shorter prompt.
        attention_mask: likewise, 0 where a token is padding, on the left.
        past_key_values: what the target has read of it.
    """

    input_ids: Tensor
    attention_mask: Tensor
    past_key_values: LayeredCache


@dataclass(frozen=True)
class SpecKVPC:
    """Shortens a prompt, and then cuts its cache.

        model.set_attn_implementation("dynattn:dense")
        found = SpecKVPC(cache=SpecKV(lookahead=64)).read(model, **prompt)
        model.generate(**found._asdict(), max_new_tokens=64)

    Args:
        prompt: how the prompt is shortened, and by which draft.
        cache: how many tokens are drafted, and how the cache is cut; its draft is the prompt's.

    Raises:
        ValueError: ``cache`` has a draft of its own, or holds more than ``prompt`` keeps.
    """

    cache: SpecKV
    prompt: SpecPC = field(default_factory=lambda: SpecPC(2048))

    def __post_init__(self) -> None:
        if self.cache.draft is not None:
            raise ValueError("SpecKVPC: the draft is that of prompt: cache has one of its own; pass it to SpecPC")
        if self.cache.capacity > self.prompt.capacity:
            raise ValueError(
                f"SpecKVPC: cache must hold no more than prompt keeps: got capacity {self.cache.capacity}, "
                f"{self.prompt.capacity}; pass a larger SpecPC"
            )

    def read(self, model: Any, input_ids: Tensor, attention_mask: Tensor | None = None) -> Shortened:
        """Shorten a prompt, read it, and hold what is chosen.

        Args:
            model: the target, a Transformers decoder with one of this project's attention implementations.
            input_ids: (batch, tokens).
            attention_mask: (batch, tokens) 0 where a token is padding, on the left; None where none is.

        Returns:
            What to generate from.

        Raises:
            ValueError: see :meth:`SpecPC.compress` and :meth:`SpecKV.read`.
        """
        short, ahead = self.prompt.look_ahead(model, input_ids, self.cache.lookahead, attention_mask)
        mask = None if bool(short.attention_mask.all()) else short.attention_mask
        cache = self.cache.read(model, short.input_ids, mask, ahead)
        return Shortened(short.input_ids, short.attention_mask, cache)
