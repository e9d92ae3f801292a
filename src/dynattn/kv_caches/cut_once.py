"""Caches that are cut once, by key head, when the prompt has been read."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from dynattn.integrations.transformers import Call
from dynattn.kv_caches.by_head import HeadLayer
from dynattn.kv_caches.layer import LayeredCache

_ROOM = 64  # tokens between two copies of what is held


class CutOnceLayer(HeadLayer):
    """A layer that attention tells of the prompt, and that holds every token that comes after it.

    Attributes:
        waiting: whether keys were returned of whose attention the layer has to be told, and was not yet.
        prompt: how many tokens had been seen when the layer was cut; None before.
    """

    def __init__(self) -> None:
        super().__init__(_ROOM)
        self.waiting = False
        self.prompt: int | None = None

    def cut(self, call: Call) -> None:
        """Evict what is not to be held.

        Args:
            call: the attention call over the prompt.
        """
        raise NotImplementedError(f"{type(self).__name__}: cut must be defined by the class")

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        attended_to = super().update(key_states, value_states)
        self.waiting = self.prompt is None or self.ragged  # attention that does not ask would see empty slots
        return attended_to

    def attended(self, call: Call) -> None:
        self.waiting = False
        if self.prompt is None:
            self.groups = call.query.shape[1] // call.key.shape[1]
            self.cut(call)
            self.prompt = self.seen

    def crop(self, tokens_to_remove: int, *, keep_room: bool = False) -> None:
        """Remove the latest tokens, down to the prompt once something of it was evicted.

        Args:
            tokens_to_remove: minus their number.
            keep_room: as :meth:`Layer.crop` takes it.

        Raises:
            ValueError: it is above 0, or evicted tokens would have to come back.
        """
        evicted = self.ragged or self.held < self.seen
        if evicted and self.prompt is not None and self.seen + min(tokens_to_remove, 0) < self.prompt:
            raise ValueError(
                f"crop: no more tokens than came after the prompt can be removed: got {-tokens_to_remove}, after the "
                f"prompt came {self.seen - self.prompt}; the prompt was cut when it had been read: remove fewer, use "
                "FullCache, or generate without an assistant model"
            )
        super().crop(tokens_to_remove, keep_room=keep_room)

    def reset(self) -> None:
        """Forget everything; the next forward is a prompt again."""
        super().reset()
        self.waiting, self.prompt = False, None


class CutOnceCache(LayeredCache):
    """A cache of such layers. It needs one of this project's attention implementations."""

    layers: list[CutOnceLayer]  # type: ignore[assignment]

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Append tokens to a layer; see :meth:`Layer.update`.

        Raises:
            ValueError: the attention before did not tell what it attended to.
        """
        self.check_told()
        return super().update(key_states, value_states, layer_idx, *args, **kwargs)

    def check_told(self) -> None:
        """Raise where a layer was not told of the attention over its keys.

        Raises:
            ValueError: the attention implementation is not one of this project's.
        """
        if any(layer.waiting for layer in self.layers):
            raise ValueError(
                f"{type(self).__name__}: attention must tell what it attended to: this model's implementation does "
                "not; register() and model.set_attn_implementation('dynattn:dense')"
            )
