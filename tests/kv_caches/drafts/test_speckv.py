"""SpecKV: what the end of a prompt and its lookahead attend to is held, against loops."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")

from transformers import DynamicCache

from dynattn.kv_caches import FullCache
from dynattn.kv_caches.drafts import SelfDraft, SpecKV, SpecKVCache, continuation
from tests.kv_caches import choices
from tests.kv_caches.choices import held_of
from tests.kv_caches.oracle import PROMPT, Oracle, steps

SPEC: dict[str, Any] = {"capacity": 10, "window": 4, "pool": 3}


@pytest.fixture(autouse=True)
def _ours(model):
    model.set_attn_implementation("dynattn:dense")


@pytest.mark.parametrize(
    ("ahead", "change"),
    [(0, {}), (0, {"pool": 7}), (1, {"window": 1}), (6, {"pool": 7}), (6, {"capacity": PROMPT - 1})],
)
def test_each_key_head_holds_what_prompt_and_lookahead_attend_to(model, ids, ahead, change):
    """Without a lookahead, what the prompt's own end attends to: SnapKV by maxima."""
    spec = SpecKV(ahead, **{**SPEC, **change})
    prompt = ids[:, :PROMPT]
    cache = spec.read(model, prompt)
    assert cache.get_seq_length() == PROMPT - 1
    tokens = torch.cat([prompt, continuation(model, prompt, ahead)], 1)
    for layer, call in zip(cache.layers, choices.calls_of(model, tokens), strict=True):
        assert layer.held == spec.capacity
        for sample in range(2):
            expected = choices.speckv(call, sample, ahead, spec.capacity, spec.window, spec.pool)
            assert held_of(layer, sample) == expected


def test_padding_on_the_left_changes_nothing(model, ids):
    padding = 7
    mask = torch.ones(2, PROMPT, dtype=torch.int64)
    mask[0, :padding] = 0
    spec = SpecKV(5, **SPEC)
    both = spec.read(model, ids[:, :PROMPT], mask)
    alone = spec.read(model, ids[:1, padding:PROMPT])
    for one, two in zip(alone.layers, both.layers, strict=True):
        assert [{j + padding for j in held} for held in held_of(one, 0)] == held_of(two, 0, padding)
    short = torch.ones(2, PROMPT, dtype=torch.int64)
    short[0, : PROMPT - 3] = 0  # less text than the window
    with_short = spec.read(model, ids[:, :PROMPT], short)
    assert held_of(with_short.layers[0], 0, PROMPT - 3) == [{PROMPT - 3, PROMPT - 2}] * 2
    asked = {"max_new_tokens": 2, "do_sample": False}
    found = model.generate(ids[:, :PROMPT], attention_mask=short, past_key_values=with_short, **asked)
    alone_text = model.generate(ids[:1, PROMPT - 3 : PROMPT], attention_mask=short[:1, PROMPT - 3 :], **asked)
    assert found[0, PROMPT:].tolist() == alone_text[0, 3:].tolist()
    short[1, -1] = 0
    with pytest.raises(ValueError, match="SpecKV: samples must be padded on the left"):
        spec.read(model, ids[:, :PROMPT], short)


@pytest.mark.parametrize(("capacity", "padded"), [(PROMPT - 1, True), (PROMPT, False)])
def test_with_room_for_everything_the_text_is_the_dense_one(model, ids, capacity, padded):
    """A prompt that is one token too long is read together with its lookahead, and nothing is lost."""
    prompt, mask = ids[:, :PROMPT], torch.ones(2, PROMPT, dtype=torch.int64)
    if padded:
        mask[1, :5] = 0
    asked = {"max_new_tokens": 5, "do_sample": False, "attention_mask": mask}
    expected = model.generate(prompt, **asked)
    cache = SpecKV(5, capacity, window=4).read(model, prompt, mask)
    assert isinstance(cache, FullCache if capacity == PROMPT else SpecKVCache)
    assert model.generate(prompt, past_key_values=cache, **asked).tolist() == expected.tolist()


def test_a_perfect_lookahead_keeps_the_text(model, ids):
    """Where heads attend to few tokens, half of the tokens are enough if one knows which. The prompt's end does not."""
    sharp = copy.deepcopy(model)
    for layer in sharp.model.layers:
        layer.self_attn.q_proj.weight.data *= 4
    asked = {"max_new_tokens": 6, "do_sample": False, "attention_mask": torch.ones_like(ids)}
    expected = sharp.generate(ids, **asked)
    for ahead in (6, 0):
        cache = SpecKV(ahead, 24, window=2, pool=1).read(sharp, ids)
        assert cache.layers[0].held == 24
        found = sharp.generate(ids, past_key_values=cache, **asked)
        assert (found.tolist() == expected.tolist()) is (ahead == 6)


def test_steps_are_those_of_attention_in_which_the_rest_is_masked(model, ids):
    cache, oracle, full = SpecKV(5, **SPEC).read(model, ids[:, :PROMPT]), Oracle(2), DynamicCache(config=model.config)
    steps(model, full, ids, [PROMPT - 1], "oracle")
    for index, layer in enumerate(cache.layers):
        known = torch.zeros(2, 2, PROMPT - 1, dtype=torch.bool)
        oracle.visible[index] = known.scatter_(2, layer.positions, True)
    rest = ids[:, PROMPT - 1 :]
    expected = steps(model, full, rest, [1, 1, 3], "oracle")
    torch.testing.assert_close(steps(model, cache, rest, [1, 1, 3], "dynattn:dense"), expected, rtol=1e-4, atol=1e-4)


def test_a_draft_is_who_writes_the_lookahead(model, ids):
    prompt = ids[:, :PROMPT]
    by_given = SpecKV(6, **SPEC).read(model, prompt, ahead=ids[:, PROMPT : PROMPT + 6])
    by_itself = SpecKV(6, **SPEC).read(model, prompt)
    draft = SelfDraft(layers=2)
    by_draft = SpecKV(6, **SPEC, draft=draft).read(model, prompt)
    with draft.of(model):
        written = continuation(model, prompt, 6)
    told = SpecKV(6, **SPEC).read(model, prompt, ahead=written)
    of = [[layer.positions.tolist() for layer in cache.layers] for cache in (by_given, by_itself, by_draft, told)]
    assert of[2] == of[3]
    assert of[0] != of[1] != of[2]
    other = copy.deepcopy(model)
    other.set_attn_implementation("sdpa")  # a draft need not tell
    assert [x.positions.tolist() for x in SpecKV(6, **SPEC, draft=other).read(model, prompt).layers] == of[1]


def test_the_cache_serves_one_prompt(model, ids):
    prompt = ids[:, :PROMPT]
    cache = SpecKV(3, **SPEC).read(model, prompt)
    found = pickle.loads(pickle.dumps(cache))
    rest = ids[:, PROMPT - 1 :]
    one, other = (steps(model, each, rest, [1, 1], "dynattn:dense") for each in (found, cache))
    assert torch.equal(one, other)
    cache.crop(-2)
    assert cache.get_seq_length() == PROMPT - 1
    with pytest.raises(ValueError, match="crop: no more tokens than came after the prompt"):
        cache.crop(-1)
    cache.reset()
    with pytest.raises(ValueError, match=r"SpecKVCache: a prompt must be read by SpecKV\.read.*call read again"):
        steps(model, cache, ids, [PROMPT], "dynattn:dense")


@pytest.mark.parametrize(
    ("given", "error", "said"),
    [
        ({"lookahead": -1}, ValueError, "SpecKV: lookahead must be at least 0: got -1"),
        ({"lookahead": 2.0}, TypeError, "SpecKV: lookahead must be an int"),
        ({"pool": 2}, ValueError, "SpecKV: pool must be odd"),
        ({"window": 10}, ValueError, "SpecKV: capacity must be above window: got 10, 10"),
    ],
)
def test_what_cannot_be_is_refused(given, error, said):
    with pytest.raises(error, match=said):
        SpecKV(**{"lookahead": 1, **SPEC, **given})


def test_the_target_must_tell(model, ids):
    model.set_attn_implementation("sdpa")
    with pytest.raises(ValueError, match="SpecKV: the model must attend by this project's attention: got 'sdpa'"):
        SpecKV(1, **SPEC).read(model, ids[:, :PROMPT])
