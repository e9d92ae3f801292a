"""Caches that forget, against a slow oracle: full attention over a full cache, masked where a token was evicted."""

from __future__ import annotations

import gc
import math
import weakref

import pytest
import torch

pytest.importorskip("transformers")

from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache, LlamaConfig, LlamaForCausalLM
from transformers.masking_utils import sdpa_mask

from dynattn.integrations.transformers import register
from dynattn.kv_caches import FullCache, SpAttenCache, WindowCache

LAYERS = 4
PROMPT = 24


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=97, hidden_size=48, intermediate_size=64, num_hidden_layers=LAYERS, num_attention_heads=6,
        num_key_value_heads=2, initializer_range=0.4, eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    register()
    return LlamaForCausalLM(config).eval()


@pytest.fixture(scope="module")
def ids():
    return torch.randint(1, 97, (2, PROMPT + 24), generator=torch.Generator().manual_seed(1))


class Oracle:
    """Dense attention in its plainest form; tells what tokens receive, and hides those that are not visible.

    Attributes:
        visible: layer to bool (batch, tokens); tokens beyond are visible.
        received: (batch, tokens), over all layers, heads, queries and steps.
    """

    def __init__(self, batch: int) -> None:
        self.visible: dict[int, torch.Tensor] = {}
        self.received = torch.zeros(batch, 200)
        AttentionInterface.register("oracle", self.attend)
        AttentionMaskInterface.register("oracle", self.mask)

    @staticmethod
    def mask(**kwargs):
        return sdpa_mask(**{**kwargs, "allow_is_causal_skip": False})

    def attend(self, module, query, key, value, attention_mask, scaling, **kwargs):
        groups = query.shape[1] // key.shape[1]
        s = scaling * query @ key.repeat_interleave(groups, 1).mT
        s = s.masked_fill(~attention_mask, -math.inf)
        hidden = self.visible.get(module.layer_idx)
        if hidden is not None:
            s[..., : hidden.shape[1]] = s[..., : hidden.shape[1]].masked_fill(~hidden[:, None, None, :], -math.inf)
        p = s.softmax(-1).nan_to_num(0.0)
        self.received[:, : key.shape[2]] += p.sum((1, 2))
        return (p @ value.repeat_interleave(groups, 1)).transpose(1, 2), None


def _window(every: int):
    return lambda config: WindowCache(window=7, sinks=2, every=every)


def _spatten(every: int, recent: int = 3):
    return lambda config: SpAttenCache(config, keep=0.3, recent=recent, every=every)


@torch.no_grad()
def _steps(model, cache, ids, sizes, implementation, mask=None, before=lambda: None):
    """Logits of the prompt and of each step; ``sizes`` are the steps' numbers of tokens."""
    model.set_attn_implementation(implementation)
    out, start = [], 0
    for size in sizes:
        before()
        end = start + size
        seen = None if mask is None else mask[:, :end]
        out.append(model(ids[:, start:end], past_key_values=cache, attention_mask=seen, use_cache=True).logits)
        start = end
    return torch.cat(out, 1)


CACHES = [
    pytest.param(_window(1), id="window"), pytest.param(_window(5), id="window-every-5"),
    pytest.param(_spatten(1), id="spatten"), pytest.param(_spatten(4), id="spatten-every-4"),
    pytest.param(_spatten(2, recent=0), id="spatten-nothing-protected"),
]  # fmt: skip


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

    ours = _steps(model, cache, ids, sizes, "dynattn:dense", mask if padded else None, remember)

    def hide():
        for index, positions in enumerate(held.pop(0)):
            known = torch.zeros(len(ids), full.get_seq_length(), dtype=torch.bool)
            oracle.visible[index] = known.scatter_(1, positions, True)

    expected = _steps(model, full, ids, sizes, "oracle", mask if padded else None, hide)
    real = slice(5 if padded else 0, None)  # a query that is padding attends to nothing: its logits mean nothing
    torch.testing.assert_close(ours[:, real], expected[:, real], rtol=1e-4, atol=1e-4)
    assert cache.layers[-1].held < PROMPT
    assert cache.get_seq_length() == PROMPT + 12


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


@pytest.mark.parametrize("every", [1, 4])
def test_the_window_holds_the_first_and_the_latest(model, ids, every):
    cache = WindowCache(window=7, sinks=2, every=every)
    sizes = [PROMPT] + [1] * 10
    _steps(model, cache, ids, sizes[:1], "sdpa")
    for step in range(10):
        seen = PROMPT + step + 1
        with torch.no_grad():
            model(ids[:, seen - 1 : seen], past_key_values=cache, use_cache=True)
        latest = 7 + (step + 1) % every
        for layer in cache.layers:
            assert layer.positions[1].tolist() == [0, 1, *range(seen - latest, seen)]
            assert layer.keys.shape[2] == 2 + latest


@pytest.mark.parametrize("every", [1, 5])
def test_tokens_together_are_as_tokens_one_by_one(model, ids, every):
    """Where a cut falls on the end of the piece."""
    one, many = _window(every)(model.config), _window(every)(model.config)
    by_one = _steps(model, one, ids, [PROMPT] + [1] * (3 * every), "dynattn:dense")
    by_many = _steps(model, many, ids, [PROMPT] + [every] * 3, "dynattn:dense")
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


@pytest.mark.parametrize("make", [_window(2), _spatten(2)])
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
    _steps(model, cache, ids, [PROMPT, 1], "sdpa")
    with pytest.raises(RuntimeError, match="size of tensor"), torch.no_grad():
        model(ids[:, PROMPT + 1 : PROMPT + 4], past_key_values=cache)


def test_beams_take_their_evictions_with_them(model, ids):
    """Reordering samples and going on is as going on and reordering."""
    a, b = (SpAttenCache(model.config, keep=0.3, recent=2, every=1) for _ in range(2))
    order = torch.tensor([1, 0])
    _steps(model, a, ids, [PROMPT, 1, 1], "dynattn:dense")
    _steps(model, b, ids[order], [PROMPT, 1, 1], "dynattn:dense")
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


@pytest.mark.parametrize("make", [_window(4), _spatten(4)])
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
        _steps(model, cache, ids, [PROMPT], "dynattn:dense")
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
    _steps(model, full, ids, [PROMPT], "dynattn:dense")
    assert full.bytes == token * (PROMPT + 1)
    assert cache.bytes < full.bytes


@pytest.mark.parametrize("make", [_window(2), _spatten(2), lambda config: FullCache()])
def test_a_cache_that_is_dropped_is_free_at_once(model, ids, make):
    gc.collect()
    gc.disable()
    try:
        cache = make(model.config)
        _steps(model, cache, ids, [PROMPT, 1], "dynattn:dense")
        keys = weakref.ref(cache.layers[0].keys)
        del cache
        assert keys() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("make", [_window(2), _spatten(2)])
@pytest.mark.parametrize("batch", [1, 2])
def test_tokens_stay_in_the_order_of_the_text(model, ids, make, batch):
    """So that groups of neighbouring keys, and windows, mean what they say; keys go with their positions."""
    cache, full = make(model.config), FullCache()
    for each in (cache, full):
        _steps(model, each, ids[:batch], [PROMPT], "dynattn:dense")
    for one, whole in zip(cache.layers, full.layers, strict=True):
        assert (one.positions.diff(dim=1) > 0).all()
        index = one.positions[:, None, :, None].expand(-1, 2, -1, 8)
        torch.testing.assert_close(one.keys, whole.keys.gather(2, index))
        torch.testing.assert_close(one.values, whole.values.gather(2, index))


def test_the_cache_is_not_copied_at_every_step(model, ids):
    cache = FullCache(room=8)
    places = []
    _steps(model, cache, ids, [PROMPT] + [1] * 12, "sdpa", before=lambda: places.append(
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
        _steps(model, SpAttenCache(model.config), ids, [PROMPT, 1], "sdpa")
    mask = torch.ones_like(ids)
    mask[1, 0] = 0
    with pytest.raises(ValueError, match="a mask hides some"):
        _steps(model, WindowCache(window=7, sinks=2, every=1), ids, [PROMPT, 1, 1], "dynattn:dense", mask)
    window = WindowCache(window=7, sinks=2, every=1)
    _steps(model, window, ids, [PROMPT], "sdpa")
    with pytest.raises(ValueError, match="15 of 24 tokens have been evicted"):
        window.crop(-1)
    spatten = SpAttenCache(model.config, keep=1.0)
    _steps(model, spatten, ids, [PROMPT], "dynattn:dense")
    with pytest.raises(ValueError, match="part of the sums by which tokens are held"):
        spatten.crop(-1)
    for cache in (window, spatten, FullCache()):
        cache.crop(0)
        assert (cache.get_seq_length() == PROMPT) is not isinstance(cache, FullCache)
        assert cache.is_croppable is (len(cache.layers) == 0)
