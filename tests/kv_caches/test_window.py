"""A window holds the first and the latest tokens."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("transformers")


from dynattn.kv_caches import WindowCache
from tests.kv_caches.oracle import PROMPT, steps


@pytest.mark.parametrize("every", [1, 4])
def test_the_window_holds_the_first_and_the_latest(model, ids, every):
    cache = WindowCache(window=7, sinks=2, every=every)
    sizes = [PROMPT] + [1] * 10
    steps(model, cache, ids, sizes[:1], "sdpa")
    for step in range(10):
        seen = PROMPT + step + 1
        with torch.no_grad():
            model(ids[:, seen - 1 : seen], past_key_values=cache, use_cache=True)
        latest = 7 + (step + 1) % every
        for layer in cache.layers:
            assert layer.positions[1].tolist() == [0, 1, *range(seen - latest, seen)]
            assert layer.keys.shape[2] == 2 + latest
