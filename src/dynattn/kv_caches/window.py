"""A cache of the first and the latest tokens, after StreamingLLM.

    held = { first ``sinks`` tokens } ∪ { last ``window`` tokens }

Source: arXiv:2309.17453. There keys get positions by their place in the cache, so that a text of any length stays
within the positions that the model was trained on; here they keep their positions in the text, which ends where the
model's context ends and gives, up to there, what attention with the evicted keys masked gives.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from dynattn.kv_caches.layer import Layer, LayeredCache


class WindowCache(LayeredCache):
    """Holds the first few tokens and the latest ones, and evicts all others.

        cache = WindowCache(window=1024, sinks=4)
        model.generate(**prompt, past_key_values=cache)

    For one token at a time, any attention implementation will do. Several tokens at once after an eviction, and padded
    batches, need one of this project's implementations, which cut masks to the tokens held; others fail on the length
    of the mask.

    The first forward attends to all of its tokens; then the cache evicts. Memory and time of a step stay the same
    however long the text grows. What stood between the first and the latest tokens is lost, and no question about it
    can be answered.

    Args:
        window: how many of the latest tokens are always held.
        sinks: how many of the first tokens are always held; much weight falls on them, and without them quality
            collapses.
        every: evict when so many more tokens than ``window + sinks`` are held. Eviction copies the cache, so that 1 is
            slow.

    Raises:
        TypeError: an argument is not an int.
        ValueError: an argument is out of range; while generating, a batch is padded on the left and sinks are held,
            since the first tokens would be padding.
    """

    def __init__(self, window: int = 1024, sinks: int = 4, every: int = 32) -> None:
        for name, value in (("window", window), ("sinks", sinks), ("every", every)):
            if not isinstance(value, int):
                raise TypeError(f"WindowCache: {name} must be an int: got {value!r}; pass a number of tokens")
        if window < 1 or sinks < 0 or every < 1:
            raise ValueError(
                f"WindowCache: window and every must be at least 1, sinks at least 0: got {window}, {every}, {sinks}"
            )
        super().__init__(layer_class_to_replicate=partial(_WindowLayer, window, sinks, every))  # type: ignore[arg-type]


class _WindowLayer(Layer):
    def __init__(self, window: int, sinks: int, every: int) -> None:
        super().__init__(room=every)
        self.window, self.sinks, self.every = window, sinks, every

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        attended_to = super().update(key_states, value_states)
        if self.held >= self.window + self.sinks + self.every:
            first, last = (
                torch.arange(self.sinks, device="cpu"),
                torch.arange(self.held - self.window, self.held, device="cpu"),
            )
            self.evict(torch.cat([first, last]).to(key_states.device).expand(len(key_states), -1))
        return attended_to

    def fit(self, mask: Tensor | None) -> Tensor | None:
        fitted = super().fit(mask)
        if fitted is not None and fitted is not mask:
            first = fitted[..., : self.sinks]
            if (~first if first.dtype == torch.bool else first < torch.finfo(first.dtype).min / 2).any():
                raise ValueError(
                    "WindowCache: the first tokens of every sample must be text, since they are held as sinks: a mask "
                    "hides some; generate for samples of one length, or with sinks=0"
                )
        return fitted

    def _refuse_crop(self) -> None:
        if self.held < self.seen:
            raise ValueError(
                f"WindowCache: crop: {self.seen - self.held} of {self.seen} tokens have been evicted, and some of them "
                "would have to come back; use FullCache, or generate without an assistant model"
            )
