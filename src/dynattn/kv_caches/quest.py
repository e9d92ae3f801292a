"""A cache that holds every token, and beside its keys what bounds their scores: a step reads the best pages alone.

    box(p) = the largest and the least elements of the keys of page p, kept up to date token by token
    step   = a product of the query with the boxes, then attention to the kept pages, where they lie

Source: Quest, arXiv:2406.10774. :class:`dynattn.Quest` is the definition.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from dynattn.integrations.transformers import Call
from dynattn.kv_caches.layer import Layer, LayeredCache
from dynattn.maths import pages
from dynattn.maths.scores import arithmetic_dtype
from dynattn.methods import Method, Quest
from dynattn.ops.pages import page_attention

_PROMPT = 64
"""More tokens at once are a part of a prompt, and attend to everything: a chunk of the first, or a further one."""


class QuestCache(LayeredCache):
    """Holds every token, and attends to the pages of keys that may matter to each new one. It needs one of this
    project's attention implementations, a dense one.

        model.set_attn_implementation("dynattn:dense")
        cache = QuestCache(budget=1024)
        model.generate(**prompt, past_key_values=cache)

    A prompt attends to all of its tokens: the first forward, and every one of more than 64 tokens. Any other token
    chooses by :class:`dynattn.Quest`, alone or among several. Nothing is lost for later, and memory grows with the text
    as that of :class:`~dynattn.kv_caches.FullCache`, and by the boxes. One token at a time, without a mask, reads boxes
    and kept pages alone. Several tokens at once, a padded batch, and what needs a gradient are computed by the
    definition, in plain PyTorch, from all keys. Up to ``budget`` tokens, attention is the dense one.

    Args:
        budget: how many keys a step attends to, besides the page that is being filled; a multiple of ``page``.
        page: keys of a page. Kernels read pages of 16, or of a multiple, in place.
        room: how many more tokens new buffers have room for; the buffers are copied once in so many steps.

    Raises:
        TypeError, ValueError: an argument is not as :class:`dynattn.Quest` takes it, or there is no room; while
            generating, the attention implementation is not one of this project's, or keeps less than everything.
    """

    def __init__(self, budget: int = 1024, page: int = 16, room: int = 256) -> None:
        if room < 1:
            raise ValueError(f"QuestCache: room must be at least 1: got {room}")
        quest = Quest(budget, page)
        super().__init__(layer_class_to_replicate=partial(_QuestLayer, quest, room))  # type: ignore[arg-type]


class _QuestLayer(Layer):
    is_croppable = True

    def __init__(self, quest: Quest, room: int) -> None:
        super().__init__(room)
        self.quest = quest
        self._boxes: Tensor | None = None  # [batch, kv_heads, pages and room, 2 * head_dim]
        self._boxed = 0  # of so many tokens
        self._waiting = False

    @property
    def bytes(self) -> int:
        return super().bytes + (0 if self._boxes is None else self._boxes.nbytes)

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if self._waiting:
            raise ValueError(
                "QuestCache: attention must ask which pages to read: this model's implementation does not; "
                "register() and model.set_attn_implementation('dynattn:dense')"
            )
        self._waiting = self.seen > 0  # the prompt is read densely by whatever reads it
        return super().update(key_states, value_states)

    def method(self, method: Method, q_len: int) -> Method:
        self._waiting = False
        if q_len == self.seen or q_len > _PROMPT:
            return method
        if not method.keeps_everything:
            if q_len > 1:  # a tuned file may have another method for several tokens at once
                return method
            raise ValueError(
                f"QuestCache: attention must be dense, since the cache chooses what to read: got {method.known_as}; "
                "use 'dynattn:dense', or FullCache with this method"
            )
        return method if self.seen <= self.quest.budget else self.quest

    def attend(self, call: Call) -> Tensor | None:
        page = self.quest.page
        in_pages = self._buffers[0].shape[2] % page == 0  # not while buffers have no room, since a graph holds them
        if call.method != self.quest or call.attn_mask is not None or not in_pages or not self.is_one_query(call):
            return None
        scale = call.query.shape[-1] ** -0.5 if call.scale is None else call.scale
        kept = pages.table(call.query, self._box(), self.held, page, self.quest.best, scale)
        return page_attention(call.query, self._buffers[0], self._buffers[1], kept, page, scale)

    def crop(self, tokens_to_remove: int, *, keep_room: bool = False) -> None:
        super().crop(tokens_to_remove, keep_room=keep_room)
        self._boxed = min(self._boxed, self.held // self.quest.page * self.quest.page)

    def reset(self) -> None:
        super().reset()
        self._boxes, self._boxed, self._waiting = None, 0, False

    def _box(self) -> Tensor:
        """The boxes of all pages; those that tokens came to since the last time are made anew."""
        page, keys = self.quest.page, self.keys
        filled, count = self._boxed // page, -(-self.held // page)
        if self._boxes is None or self._boxes.shape[2] < count:
            shape = (*keys.shape[:2], self._buffers[0].shape[2] // page, 2 * keys.shape[3])
            with torch.inference_mode(False):  # as the layer's buffers, to be written to in any mode
                grown = keys.new_empty(shape, dtype=arithmetic_dtype(keys.dtype))
            if self._boxes is not None:
                grown[:, :, :filled] = self._boxes[:, :, :filled]
            self._boxes = grown
        self._boxes[:, :, filled:count] = pages.boxes(keys[:, :, filled * page :], page)
        self._boxed = self.held
        return self._boxes[:, :, :count]

    def _capacity(self, held: int) -> int:
        """Whole pages."""
        return -(-super()._capacity(held) // self.quest.page) * self.quest.page

    def _samples(self, change: Callable[[Tensor], Tensor]) -> None:
        super()._samples(change)
        if self._boxes is not None:
            with torch.inference_mode(False):
                self._boxes = change(self._boxes)

    def __getstate__(self) -> dict[str, Any]:
        """Without the boxes, which keys give anew."""
        return {**super().__getstate__(), "_boxes": None, "_boxed": 0}
