"""A cache that forgets nothing, and is not copied at every step."""

from __future__ import annotations

from functools import partial

from dynattn.kv_caches.layer import Layer, LayeredCache


class FullCache(LayeredCache):
    """Holds every token, in buffers with spare room. The cache for methods that choose among all keys, and for dense
    attention.

        cache = FullCache()
        model.generate(**prompt, past_key_values=cache)

    Args:
        room: how many more tokens new buffers have room for; the buffers are copied once in so many steps.
    """

    def __init__(self, room: int = 256) -> None:
        if room < 1:
            raise ValueError(f"FullCache: room must be at least 1: got {room}")
        super().__init__(layer_class_to_replicate=partial(_FullLayer, room))  # type: ignore[arg-type]


class _FullLayer(Layer):
    is_croppable = True
