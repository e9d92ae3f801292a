"""Tells the layer of a key-value cache about the attention over the keys that the layer returned.

Models pass the keys that a cache returns to attention as they are, so the layer is found by the tensor itself.
"""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

_layers = WeakTensorKeyDictionary()  # from keys to a weak reference of their layer: neither keeps the other alive
_alive: set[weakref.ref] = set()  # the layers that are alive
_in_use = False  # whether there is any; a flag, since a guard on the length of a set would make compiled code slow


def _forget(layer: weakref.ref) -> None:
    global _in_use
    _alive.discard(layer)
    _in_use = bool(_alive)


def follow(key: Tensor, layer: Any) -> None:
    """Tell the layer of a cache about the attention over the keys that it returned.

    Args:
        key: what the layer's ``update`` returns for keys; models pass it on to attention as it is.
        layer: an object with the methods of :class:`dynattn.kv_caches.layer.Layer`: ``method(method, q_len)`` says
            what is kept, ``attend(call)`` may give the output, else ``fit(mask)`` cuts a mask to these keys, and
            ``attended(call)`` is told afterwards.
    """
    global _in_use
    _alive.add(weakref.ref(layer, _forget))
    _in_use = True
    _layers[key] = weakref.ref(layer)


def following(key: Tensor) -> Any:
    """The layer that returned these keys and asked to be told; None where there is none."""
    if torch.compiler.is_compiling():
        if _in_use:  # torch.compile breaks the graph here, and cannot under fullgraph
            raise NotImplementedError(
                "dynattn: caches that forget are told of the attention over their keys, which one graph cannot: call "
                "the model without fullgraph=True, or with a cache of Transformers"
            )
        return None
    found = _layers.get(key)
    return None if found is None else found()
