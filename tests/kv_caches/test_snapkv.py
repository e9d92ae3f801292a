"""SnapKV's cache: which tokens of a prompt each key head holds, against loops."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("transformers")

from dynattn.kv_caches import SnapKVCache
from tests.kv_caches import choices
from tests.kv_caches.choices import SNAPKV, held_of
from tests.kv_caches.oracle import PROMPT, steps


@pytest.mark.parametrize(
    "change", [{}, {"window": 1}, {"window": 100, "pool": 1}, {"recent": 0, "sinks": 0}, {"recent": 8, "capacity": 23}],
)  # fmt: skip
def test_each_key_head_holds_what_the_last_queries_attend_to(model, ids, change):
    options = {**SNAPKV, **change}
    cache = SnapKVCache(**options)
    prompt = ids[:, :PROMPT]
    steps(model, cache, prompt, [PROMPT], "dynattn:dense")
    options["window"] = min(PROMPT, options["window"])
    differ = False
    for layer, call in zip(cache.layers, choices.calls_of(model, prompt), strict=True):
        assert layer.positions.shape == (2, 2, options["capacity"])
        for sample in range(2):
            expected = choices.snapkv(call, sample, **options)
            assert held_of(layer, sample) == expected
            differ |= expected[0] != expected[1]
    assert differ or options["recent"] + options["sinks"] == options["capacity"]


@pytest.mark.parametrize("padding", [5, 16])
def test_padding_is_not_held_before_text_and_chooses_nothing(model, ids, padding):
    """A sample that is padded on the left holds what it holds alone; the first of its text are its first tokens."""
    mask = torch.ones_like(ids)
    mask[0, :padding] = 0
    cache = SnapKVCache(**SNAPKV)
    steps(model, cache, ids, [PROMPT], "dynattn:dense", mask)
    text = PROMPT - padding
    for index, call in enumerate(choices.calls_of(model, ids[:, :PROMPT], mask[:, :PROMPT])):
        expected = choices.snapkv(call, 0, padding, **{**SNAPKV, "window": min(text, SNAPKV["window"])})
        assert held_of(cache.layers[index], 0, padding) == expected
        assert held_of(cache.layers[index], 1) == choices.snapkv(call, 1, **SNAPKV)
        assert all(len(held) == min(text, SNAPKV["capacity"]) for held in expected)
    alone = SnapKVCache(**SNAPKV)
    steps(model, alone, ids[:1, padding:], [text], "dynattn:dense")
    for one, both in zip(alone.layers, cache.layers, strict=True):
        assert [{j + padding for j in held} for held in held_of(one, 0)] == held_of(both, 0, padding)


def test_of_equal_scores_the_earlier_token_is_held():
    """Keys that are all alike, so that every score but the ends' is the same."""
    from dynattn.kv_caches.observed import best, ranked

    rank = ranked(torch.ones(1, 2, 12), torch.ones(1, 12, dtype=torch.bool), recent=2, sinks=1)
    assert best(rank, 6).tolist() == [[[0, 1, 2, 3, 10, 11]] * 2]


@pytest.mark.parametrize(("beams", "padded"), [(1, True), (2, False)])
def test_a_prompt_that_fits_is_not_cut(model, ids, beams, padded):
    """Capacity of the prompt's length: the text is that of a dense cache."""
    prompt, mask = ids[:, :PROMPT], torch.ones(2, PROMPT, dtype=torch.int64)
    if padded:
        mask[1, :4] = 0
    asked = {"max_new_tokens": 5, "do_sample": False, "num_beams": beams, "attention_mask": mask,
             "output_logits": True, "return_dict_in_generate": True}  # fmt: skip
    model.set_attn_implementation("sdpa")
    expected = model.generate(prompt, **asked)
    model.set_attn_implementation("dynattn:dense")
    found = model.generate(prompt, past_key_values=SnapKVCache(PROMPT, recent=4), **asked)
    assert found.sequences.tolist() == expected.sequences.tolist()
    for a, b in zip(found.logits, expected.logits, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("given", "error", "said"),
    [
        ({"capacity": 0}, ValueError, "SnapKVCache: capacity must be at least 1: got 0"),
        ({"window": 0}, ValueError, "SnapKVCache: window must be at least 1: got 0"),
        ({"capacity": 8.0}, TypeError, r"SnapKVCache: capacity must be an int: got 8\.0"),
        ({"sinks": True}, TypeError, "SnapKVCache: sinks must be an int: got True"),
        ({"recent": -1}, ValueError, "SnapKVCache: recent must be at least 0: got -1"),
        ({"pool": 4}, ValueError, "SnapKVCache: pool must be odd, to have a middle: got 4; pass 5"),
        ({"recent": 9}, ValueError, r"must hold the latest and the first tokens: got 10 for 9 \+ 2"),
    ],
)
def test_what_cannot_be_is_refused(given, error, said):
    with pytest.raises(error, match=said):
        SnapKVCache(**{**SNAPKV, **given})
