"""SpAtten's pruning of the key-value cache: tokens that receive little attention are evicted, layer after layer.

    importance_j  += Σ over heads and queries of the attention that token j receives     (over all layers and steps)
    held(layer l)  = the ⌈ratio_l · n⌉ most important tokens of held(layer l - 1)

A token that a layer evicts is gone from all later layers (cascade) and from all later steps.

Source: arXiv:2012.09852, section III. Left out here: head pruning, local value pruning and progressive quantisation.
Different: the prompt is attended to whole before the first cut; ``recent`` protects the latest tokens, after
arXiv:2306.14048, because a sum over queries favours the tokens that many queries have seen (arXiv:2407.20485).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from dynattn.integrations.transformers import Call
from dynattn.kv_caches.layer import Layer, LayeredCache
from dynattn.maths.scores import scores

_WHOLE = 0.15  # the share of the layers, the first ones, that keep every token; the source's choice
_ROWS = 128  # so many queries are computed at once, so that memory is linear in the length of a prompt


class SpAttenCache(LayeredCache):
    """Holds the tokens that have received the most attention so far. It needs one of this project's attention
    implementations.

        model.set_attn_implementation("dynattn:dense")
        cache = SpAttenCache(model.config, keep=0.25)
        model.generate(**prompt, past_key_values=cache)

    The first forward attends to all of its tokens; then each layer's cache is cut.

    Args:
        config: the configuration of the model, which tells the number of its layers.
        keep: the share of the tokens so far that a layer holds. One number is the share of the last layer: the first
            15% of the layers hold everything, and the share falls evenly in between. Or a number for each layer, none
            above the one before it.
        recent: how many of the latest tokens are never evicted.
        every: evict when so many tokens have come since the last eviction, which copies the cache, so that 1 is slow.

    Raises:
        TypeError: ``config`` is no configuration.
        ValueError: an argument is out of range, or the model has layers that do not attend to the whole text; while
            generating, the attention implementation is not one of this project's.
    """

    layers: list[_SpAttenLayer]  # type: ignore[assignment]

    def __init__(self, config: Any, keep: float | Sequence[float] = 0.25, recent: int = 32, every: int = 32) -> None:
        if not hasattr(config, "get_text_config"):
            raise TypeError(
                f"SpAttenCache: config must be a model's configuration: got {type(config).__name__}; pass model.config"
            )
        text = config.get_text_config(decoder=True)
        other = set(getattr(text, "layer_types", None) or ()) - {"full_attention"}
        if other:
            raise ValueError(f"SpAttenCache: all layers must attend to the whole text: this model has {sorted(other)}")
        if recent < 0 or every < 1:
            raise ValueError(f"SpAttenCache: recent must be at least 0, every at least 1: got {recent}, {every}")
        self.ratios = _ratios(keep, text.num_hidden_layers)
        self.state = _Importance()
        super().__init__(layers=[_SpAttenLayer(self.state, ratio, recent, every) for ratio in self.ratios])

    def reset(self) -> None:
        """Forget everything."""
        super().reset()
        self.state.clear()

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Put the samples into another order, for beam search."""
        super().reorder_cache(beam_idx)  # type: ignore[arg-type]
        self.state.samples(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat each sample so many times."""
        batch = torch.arange(len(self.state.received), device=self.state.received.device).repeat_interleave(repeats)
        super().batch_repeat_interleave(repeats)
        self.state.samples(batch)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Hold only these samples."""
        super().batch_select_indices(indices)
        self.state.samples(indices)


class _Importance:
    """What the layers share.

    Attributes:
        received: (batch, n) float32, the attention that each token has received so far.
        alive: (batch, n) bool, the tokens that the layer before holds, while the layers evict one after another.
    """

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        self.received = torch.zeros(0, 0, device="cpu")
        self.alive = torch.zeros(0, 0, dtype=torch.bool, device="cpu")

    def add(self, positions: Tensor, received: Tensor, seen: int) -> None:
        batch, known = self.received.shape
        if known < seen:
            fresh = received.new_zeros(len(received), seen - known)
            self.received = torch.cat([self.received, fresh], 1) if batch else fresh
        self.received = self.received.scatter_add(1, positions, received)

    def samples(self, index: Tensor) -> None:
        if len(self.received):  # it is empty until something has been attended to
            self.received = self.received[index.to(self.received.device)]


class _SpAttenLayer(Layer):
    def __init__(self, state: _Importance, ratio: float, recent: int, every: int) -> None:
        super().__init__(room=every)
        self.state, self.ratio, self.recent, self.every = state, ratio, recent, every
        self._cut_at = 0  # how many tokens had been seen at the last eviction
        self._waiting = False

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if self._waiting:
            raise ValueError(
                "SpAttenCache: attention must tell what tokens receive: this model's implementation does not; "
                "register() and model.set_attn_implementation('dynattn:dense')"
            )
        self._waiting = True
        return super().update(key_states, value_states)

    def attended(self, call: Call) -> None:
        self.take(received(call), first=call.layer == 0)

    def take(self, weights: Tensor, first: bool) -> None:
        """Add what the tokens held have received in one attention call, and evict tokens when it is time.

        Args:
            weights: (batch, held).
            first: whether this is the model's first layer.
        """
        self._waiting = False
        self.state.add(self.positions, weights, self.seen)
        if self.seen - self._cut_at >= self.every or self._cut_at == 0:
            self._cut(first)

    def reset(self) -> None:
        super().reset()
        self._cut_at, self._waiting = 0, False

    def _refuse_crop(self) -> None:
        raise ValueError(
            "SpAttenCache: crop: the attention that the latest tokens have given to the others is part of the sums by "
            "which tokens are held, and is not known apart; use FullCache, or generate without an assistant model"
        )

    def _cut(self, first: bool) -> None:
        """Hold the most important of the tokens that the layer before holds."""
        state, positions = self.state, self.positions
        if first:
            state.alive = torch.ones_like(state.received, dtype=torch.bool)
        alive = state.alive.gather(1, positions)
        keep = min(max(math.ceil(self.ratio * self.seen), self.recent), int(alive.sum(1).min()))
        if keep < self.held:
            rank = state.received.gather(1, positions).masked_fill(positions >= self.seen - self.recent, math.inf)
            chosen = rank.masked_fill(~alive, -math.inf).topk(keep, 1).indices.sort(1).values
            self.evict(chosen)
            state.alive = torch.zeros_like(state.alive).scatter_(1, self.positions, True)
        self._cut_at = self.seen


@torch.no_grad()
def received(call: Call) -> Tensor:
    """The dense attention weights that each key receives, over all heads and queries.

    Args:
        call: the call of attention.

    Returns:
        (batch, kv_len) float32.
    """
    q_len, kv_len = call.query.shape[2], call.key.shape[2]
    scale = call.query.shape[-1] ** -0.5 if call.scale is None else call.scale
    if q_len == 1 and call.attn_mask is None:  # decoding: all heads of a key head at once, without copies of its keys
        grouped = call.query.unflatten(1, (call.key.shape[1], -1)).squeeze(3)
        return scores(grouped, call.key, None, False, scale).softmax(-1).sum((1, 2))
    total = call.query.new_zeros(call.query.shape[0], kv_len, dtype=torch.float32)
    for start in range(0, q_len, _ROWS):
        rows = slice(start, min(start + _ROWS, q_len))
        mask, offset = call.attn_mask, kv_len - q_len + start
        if mask is None:
            visible = kv_len - q_len + rows.stop if call.causal else kv_len  # later keys are after every row
            s = scores(call.query[:, :, rows], call.key[:, :, :visible], None, call.causal, scale, offset)
            total[:, :visible] += s.softmax(-1).sum((1, 2))
        else:
            mask = mask[:, :, rows] if mask.shape[2] > 1 else mask
            s = scores(call.query[:, :, rows], call.key, mask, call.causal, scale, offset)
            total += s.softmax(-1).nan_to_num(0.0).sum((1, 2))  # a row with nothing allowed gives nothing
    return total


def _ratios(keep: float | Sequence[float], layers: int) -> tuple[float, ...]:
    """The share of the tokens that each layer holds."""
    if isinstance(keep, Sequence):
        ratios = tuple(keep)
    else:
        whole = math.ceil(_WHOLE * layers)
        rest = max(1, layers - whole)
        ratios = tuple(1 - (1 - keep) * max(0, index + 1 - whole) / rest for index in range(layers))
    falling = all(a >= b for a, b in pairwise(ratios))
    if len(ratios) != layers or not falling or not all(0 < ratio <= 1 for ratio in ratios):
        raise ValueError(
            f"SpAttenCache: keep must be above 0 and at most 1, for one layer or all {layers}, none above the one "
            f"before: got {keep}"
        )
    return ratios
