"""A cache's layer is found by the keys that it returned, and neither keeps the other alive."""

from __future__ import annotations

import copy
import gc
import weakref

import pytest
import torch
from torch._dynamo.exc import Unsupported

pytest.importorskip("transformers", reason="needs dynattn[transformers]")

from dynattn.integrations.transformers import caches, follow


class Layer:
    keys: torch.Tensor


def test_the_layer_is_found_by_its_keys_alone():
    key, layer = torch.zeros(2, 2), Layer()
    follow(key, layer)
    assert caches.following(key) is layer
    assert caches.following(torch.zeros(2, 2)) is None
    assert caches.following(copy.copy(key)) is None
    assert not vars(key)


def test_nothing_is_kept_alive():
    key, layer = torch.zeros(2, 2), Layer()
    layer.keys = key
    follow(key, layer)
    gone = weakref.ref(layer)
    del layer
    gc.collect()
    assert gone() is None
    assert caches.following(key) is None
    before = len(caches._layers)
    del key
    gc.collect()
    assert len(caches._layers) == before - 1


def test_one_graph_is_refused_only_while_such_a_cache_lives():
    compiled = torch.compile(lambda key: (caches.following(key), key + 1)[1], backend="eager", fullgraph=True)
    key, layer = torch.zeros(2, 2), Layer()
    gc.collect()  # the caches of other tests
    compiled(key)
    follow(key, layer)
    follow(torch.ones(2, 2), layer)
    with pytest.raises(Unsupported, match="caches that forget"):
        compiled(torch.zeros(2, 2))
    del layer
    gc.collect()
    compiled(torch.zeros(2, 2))
