"""Caches that are cut once: steps over what is left, against attention in which the rest is masked; and what a cache
does beside."""

from __future__ import annotations

import copy
import gc
import io
import pickle
import weakref

import pytest
import torch

pytest.importorskip("transformers")

from transformers import DynamicCache

from dynattn.kv_caches import AdaSnapKVCache, FullCache, SnapKVCache
from tests.kv_caches.choices import SNAPKV
from tests.kv_caches.oracle import PROMPT, Oracle, steps

CACHES = {"snapkv": lambda: SnapKVCache(**SNAPKV), "adasnapkv": lambda: AdaSnapKVCache(**SNAPKV)}


@pytest.mark.parametrize(("size", "padded"), [(1, False), (1, True), (3, True)])
@pytest.mark.parametrize("make", CACHES)
def test_what_was_cut_is_as_if_it_were_masked(model, ids, make, size, padded):
    """Logits of every step, in a batch whose samples and heads lose different tokens."""
    cache, oracle, full = CACHES[make](), Oracle(len(ids)), DynamicCache(config=model.config)
    mask = torch.ones_like(ids)
    if padded:
        mask[0, :5] = 0
    sizes = [PROMPT] + [size] * (6 // size)
    held = []

    def remember():
        held.append([layer.positions.clone() for layer in cache.layers])

    def hide():
        for index, positions in enumerate(held.pop(0)):
            known = torch.zeros(2, 2, full.get_seq_length() + 1, dtype=torch.bool)
            oracle.visible[index] = known.scatter_(2, positions + 1, True)[..., 1:]  # the first is for empty slots

    ours = steps(model, cache, ids, sizes, "dynattn:dense", mask if padded else None, remember)
    expected = steps(model, full, ids, sizes, "oracle", mask if padded else None, hide)
    real = slice(5 if padded else 0, None)
    torch.testing.assert_close(ours[:, real], expected[:, real], rtol=1e-4, atol=1e-4)
    assert all(layer.ragged == (make == "adasnapkv") for layer in cache.layers)
    assert cache.layers[0].held < PROMPT
    assert cache.get_seq_length() == PROMPT + 6


@pytest.mark.parametrize("method", ["nm-1-2", "window-6-s1"])
@pytest.mark.parametrize("make", CACHES)
def test_methods_run_over_what_is_left(model, ids, make, method):
    """A step by a method is finite, and differs from the dense one."""
    from dynattn.integrations.transformers import register

    cache = CACHES[make]()
    steps(model, cache, ids, [PROMPT], "dynattn:dense")
    dense = steps(model, copy.deepcopy(cache), ids[:, PROMPT:], [1], "dynattn:dense")
    sparse = steps(model, cache, ids[:, PROMPT:], [1], register(method)[0])
    assert sparse.isfinite().all()
    assert not torch.allclose(sparse, dense, atol=1e-3)


@pytest.mark.parametrize(("make", "beams"), [("snapkv", 1), ("adasnapkv", 2)])
def test_generation_runs_over_what_is_left(model, ids, make, beams):
    model.set_attn_implementation("dynattn:dense")
    mask = torch.ones(2, PROMPT, dtype=torch.int64)
    mask[1, :3] = 0
    cache = CACHES[make]()
    found = model.generate(
        ids[:, :PROMPT], attention_mask=mask, past_key_values=cache, max_new_tokens=3, do_sample=False, num_beams=beams
    )
    assert found.shape == (2, PROMPT + 3)
    assert cache.get_seq_length() == PROMPT + 2
    assert cache.layers[0].held < PROMPT
    assert len(cache.layers[0].positions) == 2 * beams
    cache.reset()
    assert (cache.get_seq_length(), cache.bytes) == (0, 0)
    again = model.generate(
        ids[:, :PROMPT], attention_mask=mask, past_key_values=cache, max_new_tokens=3, do_sample=False, num_beams=beams
    )
    assert again.tolist() == found.tolist()


def _by_torch(cache):
    file = io.BytesIO()
    torch.save(cache, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize(
    ("make", "duplicate"),
    [
        ("adasnapkv", copy.deepcopy),
        ("snapkv", lambda cache: pickle.loads(pickle.dumps(cache))),
        ("adasnapkv", _by_torch),
    ],
)
def test_a_copy_goes_on_as_the_cache_does(model, ids, make, duplicate):
    cache = CACHES[make]()
    assert duplicate(cache).get_seq_length() == 0
    steps(model, cache, ids, [PROMPT, 1], "dynattn:dense")
    found = duplicate(cache)
    rest = ids[:, PROMPT + 1 :]
    assert torch.equal(steps(model, found, rest, [1, 1], "dynattn:dense"),
                       steps(model, cache, rest, [1, 1], "dynattn:dense"))  # fmt: skip
    for a, b in zip(found.layers, cache.layers, strict=True):
        assert a.positions.tolist() == b.positions.tolist()


@pytest.mark.parametrize("make", CACHES)
def test_samples_take_their_tokens_with_them(model, ids, make):
    """Reordering and going on is as going on and reordering; samples are repeated and selected whole."""
    a, b = CACHES[make](), CACHES[make]()
    order = torch.tensor([1, 0])
    steps(model, a, ids, [PROMPT], "dynattn:dense")
    steps(model, b, ids[order], [PROMPT], "dynattn:dense")
    b.reorder_cache(order)
    rest = ids[:, PROMPT:]
    first = steps(model, a, rest, [1], "dynattn:dense")
    torch.testing.assert_close(steps(model, b, rest, [1], "dynattn:dense"), first, rtol=1e-4, atol=1e-4)
    a.batch_select_indices(torch.tensor([1]))
    a.batch_repeat_interleave(3)
    assert a.layers[1].positions.tolist() == b.layers[1].positions[1:].tolist() * 3


@pytest.mark.parametrize("make", CACHES)
def test_crop_takes_back_what_came_after_the_prompt(model, ids, make):
    cache = CACHES[make]()
    cache.crop(-3)  # nothing is there
    steps(model, cache, ids, [PROMPT], "dynattn:dense")
    rest = ids[:, PROMPT:]
    expected = steps(model, copy.deepcopy(cache), rest, [2, 1], "dynattn:dense")
    keys = cache.layers[0].keys.clone()
    steps(model, cache, rest.flip(1), [2, 1], "dynattn:dense")
    cache.crop(0)
    cache.crop(-3)
    assert cache.get_seq_length() == PROMPT
    assert torch.equal(cache.layers[0].keys, keys)
    assert torch.equal(steps(model, cache, rest, [2, 1], "dynattn:dense"), expected)
    with pytest.raises(
        ValueError, match=r"crop: no more tokens than came after the prompt.*got 4, after the prompt ca"
    ):
        cache.crop(-4)
    with pytest.raises(ValueError, match="crop: tokens_to_remove must be 0 or minus"):
        cache.crop(1)
    whole = SnapKVCache(PROMPT, recent=4)  # nothing was evicted: any crop will do
    steps(model, whole, ids, [PROMPT], "dynattn:dense")
    whole.crop(-PROMPT)
    assert whole.get_seq_length() == 0


def test_memory_of_what_is_cut_is_free_at_once(model, ids):
    cache = CACHES["adasnapkv"]()
    old = []
    gc.collect()
    gc.disable()
    try:
        update = cache.update

        def watched(*args, **kwargs):
            out = update(*args, **kwargs)
            old.append(weakref.ref(out[0]))
            return out

        cache.update = watched
        steps(model, cache, ids, [PROMPT], "dynattn:dense")
        assert [ref() for ref in old] == [None] * len(cache.layers)
    finally:
        gc.enable()
    for layer in cache.layers:
        assert layer.keys.untyped_storage().nbytes() == 2 * 2 * (layer.held + layer.room) * 8 * 4


@pytest.mark.parametrize("make", CACHES)
def test_gradients_go_through_the_cut(model, ids, make):
    """Of a step after it, to the weights by which the prompt was read."""
    cache = CACHES[make]()
    model.set_attn_implementation("dynattn:dense")
    model(ids[:, :PROMPT], past_key_values=cache, use_cache=True)
    model(ids[:, PROMPT : PROMPT + 1], past_key_values=cache, use_cache=True).logits.square().sum().backward()
    gradient = model.model.layers[1].self_attn.k_proj.weight.grad
    model.zero_grad(set_to_none=True)
    assert gradient.isfinite().all()
    assert gradient.abs().max() > 0


@pytest.mark.parametrize("make", CACHES)
def test_attention_that_does_not_tell_is_refused_in_the_same_forward(model, ids, make):
    with pytest.raises(ValueError, match="KVCache: attention must tell what it attended to"):
        steps(model, CACHES[make](), ids, [PROMPT], "sdpa")
    cache = CACHES[make]()
    steps(model, cache, ids, [PROMPT], "dynattn:dense")
    if make == "adasnapkv":  # its empty slots would be seen
        with pytest.raises(ValueError, match="AdaSnapKVCache: attention must tell"):
            steps(model, cache, ids[:, PROMPT:], [1], "sdpa")
    else:
        other = copy.deepcopy(cache)
        found = steps(model, cache, ids[:, PROMPT:], [1], "sdpa")
        expected = steps(model, other, ids[:, PROMPT:], [1], "dynattn:dense")
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("make", CACHES)
def test_padding_on_the_right_is_refused(model, ids, make):
    mask = torch.ones_like(ids)
    mask[1, PROMPT - 1] = 0
    with pytest.raises(ValueError, match=r"KVCache: samples must be padded on the left: .*padding_side='left'"):
        steps(model, CACHES[make](), ids, [PROMPT], "dynattn:dense", mask)


def test_a_second_turn_is_held_whole(model, ids):
    """The prompt was cut; what comes after it is not."""
    cache, full = SnapKVCache(**SNAPKV), FullCache()
    steps(model, cache, ids, [PROMPT, 20], "dynattn:dense")
    steps(model, full, ids, [PROMPT, 20], "dynattn:dense")
    held = cache.layers[0].positions
    assert held[..., -20:].tolist() == [[list(range(PROMPT, PROMPT + 20))] * 2] * 2
    assert torch.equal(cache.layers[0].keys[:, :, -20:], full.layers[0].keys[:, :, -20:])
