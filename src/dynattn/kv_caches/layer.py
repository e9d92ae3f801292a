"""One layer of a cache that can forget: keys and values in buffers with spare room, and the position of each token.

Transformers' own dynamic layer concatenates its tensors at every step, which copies the whole cache. This layer writes
into its buffers, and copies them only when they are full.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from dynattn.integrations.transformers import Call, follow
from dynattn.methods import Method

try:
    from transformers.cache_utils import Cache, DynamicLayer
except ImportError as error:
    raise ImportError(
        "dynattn.kv_caches: needs transformers 5 or newer: pip install 'dynattn[transformers]'"
    ) from error


class Layer(DynamicLayer):
    """Keys and values of the tokens that are still there, in the order of their positions.

    Positions are those in the text: rotary embeddings stay as they were computed, and Transformers makes masks for the
    whole text, of which :meth:`fit` takes the part that is left.

    Args:
        room: how many more tokens new buffers have room for.

    Attributes:
        keys: (batch, kv_heads, held, head_dim), a view of a buffer.
        values: likewise.
        positions: (batch, held): each sample of a batch has its own.
        seen: tokens so far, those evicted included.
    """

    is_croppable = False
    by_head = False  # whether each key head holds tokens of its own, and so has positions of its own
    keys: Tensor
    values: Tensor
    positions: Tensor

    def __init__(self, room: int) -> None:
        super().__init__()
        self.room = room
        self.seen = 0
        self._buffers: list[Tensor] = []  # keys, values, positions (batch, 1 or kv_heads, capacity, 1)
        self._shown: Tensor | None = None  # positions of what the last update returned

    @property
    def held(self) -> int:
        """How many tokens are held."""
        return self.keys.shape[2] if self._buffers else 0

    @property
    def bytes(self) -> int:
        """The memory of the buffers, their spare room included."""
        return sum(buffer.nbytes for buffer in self._buffers)

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append tokens.

        Args:
            key_states: (batch, kv_heads, new, head_dim).
            value_states: likewise.
            args, kwargs: what Transformers passes besides; this layer does not look at it.

        Returns:
            Keys and values to attend to, (batch, kv_heads, held, head_dim).
        """
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        batch, _, new, _ = key_states.shape
        positions = torch.arange(self.seen, self.seen + new, device=key_states.device)
        heads = key_states.shape[1] if self.by_head else 1
        parts = (key_states, value_states, positions[None, None, :, None].expand(batch, heads, -1, 1))
        start = self.held
        if not self._buffers:
            self._hold(parts)
        elif start + new > self._buffers[0].shape[2] or differentiated([*self._buffers, *parts]):
            pairs = zip(self._buffers, parts, strict=True)
            self._hold([torch.cat([buffer[:, :, :start], part], 2) for buffer, part in pairs])
        else:
            for buffer, part in zip(self._buffers, parts, strict=True):
                # A graph may hold views of this buffer. They end before the room that is written to, so what they show
                # does not change; writing through `data` keeps autograd from taking them for changed.
                buffer.data[:, :, start : start + new] = part
            self._show(start + new)
        self.seen += new
        self._shown = self.positions
        follow(self.keys, self)
        return self.keys, self.values

    def evict(self, keep: Tensor) -> None:
        """Hold only these tokens. The memory of the others is freed as soon as the attention call that reads it is
        done.

        Args:
            keep: (batch, kept) indices into what is held, ascending.
        """
        held = [buffer[:, :, : self.held] for buffer in self._buffers]
        if len(keep) == 1:  # whole rows at once: several times as fast as element by element
            self._hold([view.index_select(2, keep[0]) for view in held])
        else:
            index = keep[:, None, :, None]
            self._hold([view.gather(2, index.expand(-1, view.shape[1], -1, view.shape[3])) for view in held])

    def fit(self, mask: Tensor | None) -> Tensor | None:
        """The part of a mask that is about the tokens that the last :meth:`update` returned.

        Args:
            mask: (batch or 1, heads or 1, q_len, seen), or None.

        Returns:
            (batch, heads or 1, q_len, tokens returned), or None.
        """
        if mask is None or self._shown is None or self._shown.shape[1] == self.seen:
            return mask
        index = self._shown[:, None, None, :].expand(-1, *mask.shape[1:3], -1)
        return mask.expand(len(index), -1, -1, -1).gather(-1, index)

    def method(self, method: Method, q_len: int) -> Method:
        """What an attention call over what :meth:`update` returned keeps.

        Args:
            method: what the model's attention implementation, or the module, says.
            q_len: the number of queries.
        """
        return method

    def attend(self, call: Call) -> Tensor | None:
        """The output of an attention call, where the layer knows a shorter way to it than ``attention()``. It is asked
        before :meth:`fit`, so that no mask is made for nothing.

        Args:
            call: that attention call, with the mask of the whole text.

        Returns:
            (batch, heads, q_len, value_dim), or None.
        """
        return None

    def is_one_query(self, call: Call) -> bool:
        """Whether a call is of one query over all that is held, where it lies, and no graph is made of it."""
        key, value = self._buffers[:2]
        return (
            call.query.shape[2] == 1
            and call.query.dtype == key.dtype == value.dtype  # attention() refuses others; kernels read what is there
            and call.key is self.keys
            and call.value is self.values
            and not differentiated((call.query, key, value))
            and not torch.is_autocast_enabled(key.device.type)
        )

    def attended(self, call: Call) -> None:
        """Called after each attention call over what :meth:`update` returned.

        Args:
            call: that attention call; its mask is that of the whole text where :meth:`attend` gave the output, and else
                what :meth:`fit` made of it.
        """

    def get_seq_length(self) -> int:
        """Tokens so far, those evicted included: the position of the next one."""
        return self.seen

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Length and offset of masks: the whole text's."""
        return self.seen + query_length, 0

    def crop(self, tokens_to_remove: int, *, keep_room: bool = False) -> None:
        """Remove the latest tokens, as Transformers' dynamic cache does.

        Args:
            tokens_to_remove: minus their number; 0 removes nothing, and more than there are removes all.
            keep_room: whether the next tokens may be written over them. Nothing is copied then, but what an earlier
                :meth:`update` returned no longer shows what went: only for a caller that holds no such tensor.

        Raises:
            ValueError: it is above 0, or what the cache held before these tokens came cannot be had any more.
        """
        if tokens_to_remove > 0:
            raise ValueError(
                f"crop: tokens_to_remove must be 0 or minus a number of tokens: got {tokens_to_remove}; pass a "
                "negative number to remove so many"
            )
        if tokens_to_remove == 0 or not self._buffers:
            return
        self._refuse_crop()
        if self.held + tokens_to_remove <= 0:  # as new, for a batch of whatever size
            self.reset()
            return
        held = self.held + tokens_to_remove
        if not keep_room:
            # What is appended next must not be written into the tokens that go, since tensors which an earlier update
            # returned still show them.
            self._buffers = [buffer[:, :, :held] for buffer in self._buffers]
        self.seen += tokens_to_remove
        self._show(held)
        self._shown = self.positions

    def _refuse_crop(self) -> None:
        """Raise where removing the latest tokens would not give what the cache was before they came."""

    def reset(self) -> None:
        """Forget everything."""
        self.seen, self._buffers, self._shown = 0, [], None
        super().reset()

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Put the samples into another order, for beam search."""
        self._samples(lambda buffer: buffer.index_select(0, beam_idx.to(buffer.device)))

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat each sample so many times."""
        self._samples(lambda buffer: buffer.repeat_interleave(repeats, 0))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Hold only these samples."""
        self._samples(lambda buffer: buffer[indices])

    def _samples(self, change: Callable[[Tensor], Tensor]) -> None:
        held = self.held
        self._buffers = [change(buffer) for buffer in self._buffers]
        if self._buffers:
            self._show(held)

    def __getstate__(self) -> dict[str, Any]:
        """What copies and pickles hold: the tokens' values, without room, views of them or the graph that made them."""
        if self._buffers:
            # The room goes from this cache too: a process that is started with the cache finds the tensors by their
            # memory, which has to live on when the state is written.
            with torch.inference_mode(False):
                self._buffers = [buffer[:, :, : self.held].clone() for buffer in self._buffers]
            self._show(self.held)
        views = ("keys", "values", "positions", "_shown")
        state = {name: value for name, value in vars(self).items() if name not in views}
        return {**state, "_buffers": [buffer.detach() for buffer in self._buffers]}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self.keys = self.values = None  # type: ignore[assignment]  # as a layer begins
        self._shown = None
        if self._buffers:
            self._hold(self._buffers)

    def _hold(self, parts: Sequence[Tensor]) -> None:
        """New buffers with these tokens and room behind them, or, where a gradient goes through them, without room."""
        held = parts[0].shape[2]
        if differentiated(parts):
            self._buffers = [part.clone() for part in parts]
            self._show(held)
            return
        self._buffers = []
        for part in parts:
            with torch.inference_mode(False):  # a buffer made in inference mode could be written to in that mode alone
                buffer = part.new_empty(*part.shape[:2], self._capacity(held), part.shape[3])
            buffer[:, :, :held] = part
            self._buffers.append(buffer)
        self._show(held)

    def _capacity(self, held: int) -> int:
        """How many tokens new buffers have room for, those held included."""
        return held + self.room

    def _show(self, held: int) -> None:
        self.keys, self.values, positions = (buffer[:, :, :held] for buffer in self._buffers)
        self.positions = positions[..., 0] if self.by_head else positions[:, 0, :, 0]


def differentiated(tensors: Sequence[Tensor]) -> bool:
    """Whether autograd records what is done with these, so that it must not be done in place."""
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)


class LayeredCache(Cache):
    """A cache of such layers, for ``past_key_values``."""

    layers: list[Layer]  # type: ignore[assignment]

    @property
    def bytes(self) -> int:
        """Memory of keys, values and positions, the buffers' room included."""
        return sum(layer.bytes for layer in self.layers)
