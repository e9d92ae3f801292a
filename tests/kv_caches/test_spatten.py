"""SpAtten's cache: importance summed by the oracle, and the cascade written as sets."""

from __future__ import annotations

import math

import pytest
import torch

pytest.importorskip("transformers")

from transformers import AttentionInterface, DynamicCache

from dynattn.kv_caches import SpAttenCache
from tests.kv_caches.oracle import LAYERS, PROMPT, Oracle, steps


@pytest.mark.parametrize("keep", [(1.0, 0.8, 0.5, 0.25), (1.0, 0.5, 0.5, 0.5)])
@pytest.mark.parametrize("every", [1, 3])
def test_spatten_holds_the_most_important_of_what_the_layer_before_holds(model, ids, every, keep):
    """Importance summed by the oracle, and the cascade written as sets."""
    recent = 2
    cache = SpAttenCache(model.config, keep=keep, recent=recent, every=every)
    oracle, full = Oracle(len(ids)), DynamicCache(config=model.config)
    sizes = [PROMPT] + [1] * 9
    held = [[set(range(PROMPT)) for _ in range(LAYERS)] for _ in ids]  # [sample][layer]
    seen = last = 0

    # the cut of a layer looks at what has been received up to that layer, so the oracle cuts while it attends
    def cut(module, *args, **kwargs):
        layer = module.layer_idx
        out = type(oracle).attend(oracle, module, *args, **kwargs)
        if seen == PROMPT or seen - last >= every:
            for sample, sets in enumerate(held):
                candidates = sets[layer] & (sets[layer - 1] if layer else sets[layer])
                keep = (
                    min(
                        math.ceil(cache.ratios[layer] * seen),
                        *(len(s[layer] & (s[layer - 1] if layer else s[layer])) for s in held),
                    )
                    if layer
                    else seen
                )
                rank = lambda j: math.inf if j >= seen - recent else float(oracle.received[sample, j])  # noqa: B023, E731
                plans[sample] = set(sorted(candidates, key=rank, reverse=True)[:keep])
            for sample, sets in enumerate(held):
                sets[layer] = plans[sample]
        return out

    plans: dict[int, set[int]] = {}
    AttentionInterface.register("oracle", cut)
    start = 0
    for size in sizes:
        seen = start + size
        for sets in held:
            for index in range(LAYERS):
                sets[index] |= set(range(start, seen))
        for index in range(LAYERS):
            visible = torch.tensor([[j in sets[index] for j in range(seen)] for sets in held])
            oracle.visible[index] = visible
        with torch.no_grad():
            for implementation, past in (("dynattn:dense", cache), ("oracle", full)):
                model.set_attn_implementation(implementation)
                model(ids[:, start:seen], past_key_values=past, use_cache=True)
        if seen == PROMPT or seen - last >= every:
            last = seen
        for index, layer in enumerate(cache.layers):
            for sample, sets in enumerate(held):
                assert set(layer.positions[sample].tolist()) == sets[index], (seen, index, sample)
        start = seen
    assert [layer.held for layer in cache.layers] == sorted((layer.held for layer in cache.layers), reverse=True)
    assert len({tuple(layer.positions[0].tolist()) for layer in cache.layers}) > 1


def test_beams_take_their_evictions_with_them(model, ids):
    """Reordering samples and going on is as going on and reordering."""
    a, b = (SpAttenCache(model.config, keep=0.3, recent=2, every=1) for _ in range(2))
    order = torch.tensor([1, 0])
    steps(model, a, ids, [PROMPT, 1, 1], "dynattn:dense")
    steps(model, b, ids[order], [PROMPT, 1, 1], "dynattn:dense")
    b.reorder_cache(order)
    assert a.layers[-1].positions.tolist() == b.layers[-1].positions.tolist()
    for cache in (a, b):
        with torch.no_grad():
            model(ids[:, PROMPT : PROMPT + 1], past_key_values=cache, use_cache=True)
    for one, other in zip(a.layers, b.layers, strict=True):
        assert one.positions.tolist() == other.positions.tolist()
        torch.testing.assert_close(one.keys, other.keys)
    a.batch_select_indices(torch.tensor([1]))
    a.batch_repeat_interleave(3)
    assert a.layers[-1].positions.tolist() == b.layers[-1].positions[1:].tolist() * 3
    assert a.state.received.shape[0] == 3
