"""Caches that forget, against a slow oracle: full attention over a full cache, masked where a token was evicted."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch

pytest.importorskip("transformers")

from transformers import DynamicCache, LlamaConfig

from dynattn.kv_caches import FullCache, QuestCache, SpAttenCache, WindowCache
from tests.kv_caches.oracle import CACHES, LAYERS, PROMPT, Oracle, spatten, steps, windowed


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("make", CACHES)
def test_what_was_evicted_is_as_if_it_were_masked(model, ids, make, size, padded):
    """Logits of every step, in a batch whose samples lose different tokens, some of them padded on the left."""
    cache, oracle, full = make(model.config), Oracle(len(ids)), DynamicCache(config=model.config)
    if padded and isinstance(cache, WindowCache):
        cache = WindowCache(window=7, sinks=0, every=2)
    mask = torch.ones_like(ids)
    if padded:
        mask[0, :5] = 0
    sizes = [PROMPT] + [size] * (12 // size)
    held = []

    def remember():
        held.append([layer.positions.clone() for layer in cache.layers] if held else [])

    ours = steps(model, cache, ids, sizes, "dynattn:dense", mask if padded else None, remember)

    def hide():
        for index, positions in enumerate(held.pop(0)):
            known = torch.zeros(len(ids), full.get_seq_length(), dtype=torch.bool)
            oracle.visible[index] = known.scatter_(1, positions, True)

    expected = steps(model, full, ids, sizes, "oracle", mask if padded else None, hide)
    real = slice(5 if padded else 0, None)  # a query that is padding attends to nothing: its logits mean nothing
    torch.testing.assert_close(ours[:, real], expected[:, real], rtol=1e-4, atol=1e-4)
    assert cache.layers[-1].held < PROMPT
    assert cache.get_seq_length() == PROMPT + 12


@pytest.mark.parametrize("every", [1, 5])
def test_tokens_together_are_as_tokens_one_by_one(model, ids, every):
    """Where a cut falls on the end of the piece."""
    one, many = windowed(every)(model.config), windowed(every)(model.config)
    by_one = steps(model, one, ids, [PROMPT] + [1] * (3 * every), "dynattn:dense")
    by_many = steps(model, many, ids, [PROMPT] + [every] * 3, "dynattn:dense")
    torch.testing.assert_close(by_many, by_one, rtol=1e-4, atol=1e-4)
    for a, b in zip(one.layers, many.layers, strict=True):
        assert a.positions.tolist() == b.positions.tolist()


@pytest.mark.parametrize("implementation", ["sdpa", "dynattn:dense"])
@pytest.mark.parametrize(
    "make", [lambda config: FullCache(room=3), lambda config: SpAttenCache(config, keep=1.0),
             lambda config: WindowCache(window=100)],
)  # fmt: skip
def test_a_cache_that_evicts_nothing_generates_what_transformers_does(model, ids, make, implementation):
    """Greedy and beam search, the latter with samples taken in another order after each step."""
    cache = make(model.config)
    if isinstance(cache, SpAttenCache) and implementation == "sdpa":
        pytest.skip("needs to see attention")
    for beams in (1, 3):
        asked = {"max_new_tokens": 12, "do_sample": False, "num_beams": beams, "output_logits": True,
                 "return_dict_in_generate": True, "attention_mask": torch.ones_like(ids)}  # fmt: skip
        model.set_attn_implementation("sdpa")
        expected = model.generate(ids, **asked)
        model.set_attn_implementation(implementation)
        found = model.generate(ids, past_key_values=make(model.config), **asked)
        assert found.sequences.tolist() == expected.sequences.tolist()
        for a, b in zip(found.logits, expected.logits, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("make", [windowed(2), spatten(2)])
def test_generation_runs_over_what_is_left(model, ids, make):
    """Greedy and beam search; positions go on from the whole text."""
    model.set_attn_implementation("dynattn:dense")
    for beams in (1, 2):
        cache = make(model.config)
        found = model.generate(ids, past_key_values=cache, max_new_tokens=10, do_sample=False, num_beams=beams)
        assert found.shape == (2, ids.shape[1] + 10)
        assert cache.get_seq_length() == ids.shape[1] + 9
        assert cache.layers[-1].held < ids.shape[1]
        assert len(cache.layers[-1].positions) == 2 * beams
    cache.reset()
    assert (cache.get_seq_length(), cache.bytes) == (0, 0)


def test_several_tokens_at_once_after_an_eviction_need_a_mask_that_fits(model, ids):
    """Transformers' own attention gets the whole text's mask, and stops; nothing is silently wrong."""
    cache = WindowCache(window=7, sinks=2, every=1)
    steps(model, cache, ids, [PROMPT, 1], "sdpa")
    with pytest.raises(RuntimeError, match="size of tensor"), torch.no_grad():
        model(ids[:, PROMPT + 1 : PROMPT + 4], past_key_values=cache)


@pytest.mark.parametrize("make", [windowed(4), spatten(4)])
def test_memory_of_what_is_evicted_is_free_at_once(model, ids, make):
    """Without the garbage collector: nothing refers to the old buffers, not in a circle either."""
    cache = make(model.config)
    old = []
    gc.collect()
    gc.disable()
    try:
        update = cache.update

        def watched(keys, values, layer, *args, **kwargs):
            out = update(keys, values, layer, *args, **kwargs)
            old.append(weakref.ref(out[0]))
            return out

        cache.update = watched
        steps(model, cache, ids, [PROMPT], "dynattn:dense")
        assert len(old) == LAYERS
        first = [ref() is None for ref in old]
    finally:
        gc.enable()
    cut = [layer.held < PROMPT for layer in cache.layers]
    assert first == cut
    assert any(cut)
    for layer in cache.layers:
        room = layer.room
        assert layer.keys.untyped_storage().nbytes() == 2 * 2 * (layer.held + room) * 8 * 4  # samples, heads, …, float
    token = LAYERS * 2 * (2 * 2 * 8 * 4 + 8)  # of all layers: keys and values of 2 heads, a position, for 2 samples
    full = FullCache(room=1)
    steps(model, full, ids, [PROMPT], "dynattn:dense")
    assert full.bytes == token * (PROMPT + 1)
    assert cache.bytes < full.bytes


@pytest.mark.parametrize("make", [windowed(2), spatten(2), lambda config: FullCache(), lambda config: QuestCache(16)])
def test_a_cache_that_is_dropped_is_free_at_once(model, ids, make):
    gc.collect()
    gc.disable()
    try:
        cache = make(model.config)
        steps(model, cache, ids, [PROMPT, 1], "dynattn:dense")
        keys = weakref.ref(cache.layers[0].keys)
        del cache
        assert keys() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("make", [windowed(2), spatten(2)])
@pytest.mark.parametrize("batch", [1, 2])
def test_tokens_stay_in_the_order_of_the_text(model, ids, make, batch):
    """So that groups of neighbouring keys, and windows, mean what they say; keys go with their positions."""
    cache, full = make(model.config), FullCache()
    for each in (cache, full):
        steps(model, each, ids[:batch], [PROMPT], "dynattn:dense")
    for one, whole in zip(cache.layers, full.layers, strict=True):
        assert (one.positions.diff(dim=1) > 0).all()
        index = one.positions[:, None, :, None].expand(-1, 2, -1, 8)
        torch.testing.assert_close(one.keys, whole.keys.gather(2, index))
        torch.testing.assert_close(one.values, whole.values.gather(2, index))


def test_the_cache_is_not_copied_at_every_step(model, ids):
    cache = FullCache(room=8)
    places = []
    steps(model, cache, ids, [PROMPT] + [1] * 12, "sdpa", before=lambda: places.append(
        cache.layers[0].keys.data_ptr() if cache.layers else 0))  # fmt: skip
    assert len(set(places[1:])) == 2  # after the prompt, and once when its room is used up


def test_what_cannot_be_done_is_refused(model, ids):
    with pytest.raises(ValueError, match="FullCache: room"):
        FullCache(0)
    with pytest.raises(ValueError, match="WindowCache: window and every"):
        WindowCache(window=0)
    with pytest.raises(TypeError, match=r"WindowCache: window must be an int: got 4\.5"):
        WindowCache(window=4.5)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="SpAttenCache: config must be a model's configuration: got LlamaForCausalLM"):
        SpAttenCache(model)
    for wrong in (0.0, (1.0, 0.5), (0.5, 1.0, 0.5, 0.2)):
        with pytest.raises(ValueError, match="SpAttenCache: keep must be above 0"):
            SpAttenCache(model.config, wrong)
    with pytest.raises(ValueError, match="SpAttenCache: recent"):
        SpAttenCache(model.config, every=0)
    sliding = LlamaConfig(num_hidden_layers=2)
    sliding.layer_types = ["full_attention", "sliding_attention"]
    with pytest.raises(ValueError, match=r"whole text: this model has \['sliding_attention'\]"):
        SpAttenCache(sliding)
    with pytest.raises(ValueError, match="attention must tell"):
        steps(model, SpAttenCache(model.config), ids, [PROMPT, 1], "sdpa")
    mask = torch.ones_like(ids)
    mask[1, 0] = 0
    with pytest.raises(ValueError, match="a mask hides some"):
        steps(model, WindowCache(window=7, sinks=2, every=1), ids, [PROMPT, 1, 1], "dynattn:dense", mask)
    window = WindowCache(window=7, sinks=2, every=1)
    steps(model, window, ids, [PROMPT], "sdpa")
    with pytest.raises(ValueError, match="15 of 24 tokens have been evicted"):
        window.crop(-1)
    spatten = SpAttenCache(model.config, keep=1.0)
    steps(model, spatten, ids, [PROMPT], "dynattn:dense")
    with pytest.raises(ValueError, match="part of the sums by which tokens are held"):
        spatten.crop(-1)
    for cache in (window, spatten, FullCache()):
        cache.crop(0)
        assert (cache.get_seq_length() == PROMPT) is not isinstance(cache, FullCache)
        assert cache.is_croppable is (len(cache.layers) == 0)
