"""SpecPC: a draft reads the prompt, and the target reads the tokens that the draft attended to.

    received_j = max over layers, heads and queries of weight · attention that token j receives from the draft
    score      = max of received over the ``width`` tokens around j
    kept       = the latest ``window`` tokens, then token after token by falling score, each with the tokens around it,
                 the nearest first, until there are ``capacity``

The queries are the last ``window`` of the prompt, whose weight rises evenly from 0 to 1, and the tokens that the draft
has written and read again, whose weight is 1. The first ``skip`` layers do not count. Around token j are the
``(width - 1) // 2`` tokens before it and the ``width // 2`` behind it. Of equal scores, and of equal distances, the
earlier token comes first. The target numbers the tokens anew.

Source: arXiv:2506.08373.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dynattn.integrations.transformers import Call, observing
from dynattn.kv_caches.counts import check_counts
from dynattn.kv_caches.drafts.greedy import continuation
from dynattn.kv_caches.drafts.self_draft import SelfDraft, check_ours, drafting
from dynattn.kv_caches.observed import observed, refuse_right_padding


class Compressed(NamedTuple):
    """A shorter prompt.

    Attributes:
        input_ids: (batch, at most capacity).
        attention_mask: likewise, 0 where a token is padding, on the left.
        positions: likewise, where each token stood in the prompt.
    """

    input_ids: Tensor
    attention_mask: Tensor
    positions: Tensor


@dataclass(frozen=True)
class SpecPC:
    """Shortens a prompt to the tokens that a draft attends to.

        model.set_attn_implementation("dynattn:dense")
        short = SpecPC(capacity=1024, draft=SelfDraft()).compress(model, **prompt)
        model.generate(short.input_ids, attention_mask=short.attention_mask)

    Args:
        capacity: how many tokens are kept.
        window: how many of the latest tokens are always kept, and choose.
        width: how many tokens a token comes with, itself included.
        skip: how many of the draft's first layers do not count.
        draft: a :class:`SelfDraft`, or another Transformers decoder with the same tokenizer, with one of this
            project's attention implementations; None for the model itself.

    Raises:
        TypeError: a number is no int.
        ValueError: a number is out of range.
    """

    capacity: int = 1024
    window: int = 64
    width: int = 32
    skip: int = 8
    draft: SelfDraft | nn.Module | None = None

    def __post_init__(self) -> None:
        check_counts("SpecPC", capacity=self.capacity, window=self.window, width=self.width)
        check_counts("SpecPC", least=0, skip=self.skip)
        if self.window > self.capacity:
            raise ValueError(
                f"SpecPC: capacity must be at least window: got {self.capacity}, {self.window}; pass a smaller window"
            )

    def compress(self, model: Any, input_ids: Tensor, attention_mask: Tensor | None = None) -> Compressed:
        """The tokens that the target should read. A prompt of no more than ``capacity`` tokens stays as it is.

        Args:
            model: the target, of which a draft is made; it is not run where ``draft`` is another model.
            input_ids: (batch, tokens).
            attention_mask: (batch, tokens) 0 where a token is padding, on the left; None where none is.

        Returns:
            The shorter prompt.

        Raises:
            ValueError: the draft's attention is not this project's, it has no layers behind the first ``skip``, or a
                batch is padded on the right.
        """
        if input_ids.shape[1] <= self.capacity:
            return _whole(input_ids, attention_mask)
        return self.look_ahead(model, input_ids, 1, attention_mask)[0]

    def look_ahead(
        self, model: Any, input_ids: Tensor, tokens: int, attention_mask: Tensor | None = None
    ) -> tuple[Compressed, Tensor]:
        """The shorter prompt, and what the draft goes on with, all of whose steps choose.

        Args:
            model, input_ids, attention_mask: see :meth:`compress`.
            tokens: how many tokens the draft writes.

        Returns:
            The shorter prompt, and (batch, at most ``tokens``) int64.

        Raises:
            ValueError: as :meth:`compress` says.
        """
        if attention_mask is not None:
            refuse_right_padding(attention_mask, "SpecPC")
        received = _Received(input_ids.shape[1], self.window, self.skip)
        with drafting(self.draft, model) as draft:
            check_ours(draft, "SpecPC")
            with observing(received.add):
                ahead = continuation(draft, input_ids, max(1, tokens), attention_mask)[:, :tokens]
        if input_ids.shape[1] <= self.capacity:
            return _whole(input_ids, attention_mask), ahead
        if received.most is None:
            raise ValueError(
                f"SpecPC: skip must leave layers of the draft: got {self.skip}, {type(draft).__name__} has no more; "
                "pass a smaller one"
            )
        return _taken(input_ids, attention_mask, self.chosen(received.most, attention_mask)), ahead

    def chosen(self, received: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """The tokens that are kept, by what each received.

        Args:
            received: (batch, tokens), at least 0.
            attention_mask: (batch, tokens) 0 where a token is padding; None where none is.

        Returns:
            (batch, min(tokens, capacity)) positions, ascending. A sample with too few tokens gets padding.
        """
        behind = self.width // 2
        padded = nn.functional.pad(received[:, None], (self.width - 1 - behind, behind))
        score = nn.functional.max_pool1d(padded, self.width, 1)[:, 0]
        orders = score.argsort(dim=-1, descending=True, stable=True).tolist()
        text = torch.ones_like(received, dtype=torch.bool) if attention_mask is None else attention_mask != 0
        kept = [self._of_sample(order, row) for order, row in zip(orders, text.tolist(), strict=True)]
        return torch.tensor(kept, device=received.device)

    def _of_sample(self, order: list[int], text: list[bool]) -> list[int]:
        real = [place for place, is_text in enumerate(text) if is_text]
        padding = [place for place, is_text in enumerate(text) if not is_text]
        wanted = min(len(text), self.capacity)
        if len(real) <= wanted:
            return sorted(padding[len(padding) - (wanted - len(real)) :] + real)
        around = sorted(range(-((self.width - 1) // 2), self.width // 2 + 1), key=lambda step: (abs(step), step))
        kept = set(real[-self.window :])
        for place in order:
            for near in (place + step for step in around):
                if len(kept) == wanted:
                    return sorted(kept)
                if text[place] and 0 <= near < len(text) and text[near]:
                    kept.add(near)
        return sorted(kept)


class _Received:
    """What each token of a prompt receives at most, over the draft's layers, heads and queries.

    Attributes:
        most: (batch, tokens), or None before anything counted.
    """

    def __init__(self, tokens: int, window: int, skip: int) -> None:
        self._tokens, self._window, self._skip = tokens, window, skip
        self.most: Tensor | None = None

    def add(self, call: Call) -> None:
        if call.layer < self._skip:
            return
        rows = min(self._window, call.query.shape[2])
        weights = None if rows == 1 else torch.linspace(0, 1, rows, device=call.query.device)
        found = observed(call, rows, "max", weights).amax(1)[:, : self._tokens]
        self.most = found if self.most is None else torch.maximum(self.most, found)


def _whole(input_ids: Tensor, attention_mask: Tensor | None) -> Compressed:
    places = torch.arange(input_ids.shape[1], device=input_ids.device).expand(len(input_ids), -1)
    return Compressed(input_ids, torch.ones_like(input_ids) if attention_mask is None else attention_mask, places)


def _taken(input_ids: Tensor, attention_mask: Tensor | None, places: Tensor) -> Compressed:
    mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
    return Compressed(input_ids.gather(1, places), mask.gather(1, places), places)
