"""Decoding by every way, against what it is by definition: one pass over the whole text where nothing is lost."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("transformers")


from dynattn.integrations.transformers import register
from dynattn.kv_caches import AdaSnapKVCache, FullCache, SnapKVCache, SpAttenCache, WindowCache
from dynattn.kv_caches.drafts import SelfDraft, SpecKV, SpecPC
from dynattn.lab.decode.prompt import cache_bytes, cache_of, score, shortened, step_seconds
from dynattn.lab.decode.ways import BASELINE, find
from dynattn.lab.models import load
from tests.lab.decode.tiny import PROMPT


@pytest.mark.parametrize(
    "name",
    [BASELINE, "sdpa-in-place", "dense-in-place", "nm-1-1", "cache-window-999-s4", "topk-1.0", "cache-quest-128"],
)
def test_ways_that_lose_nothing_score_as_one_pass(model, ids, prompt, name):
    answer = 15
    found, hit = score(model, prompt, find(name), ids, answer)
    with torch.no_grad():
        model.set_attn_implementation("sdpa")
        logits = model(ids).logits[0, -answer - 1 : -1]
    assert found == pytest.approx(torch.nn.functional.cross_entropy(logits, ids[0, -answer:]).item(), rel=1e-4)
    assert hit == bool((logits.argmax(-1) == ids[0, -answer:]).all())


@pytest.mark.parametrize("name", ["nm-2-4", "topk-0.25-f4", "window-16-s2", "cache-quest-16"])
def test_methods_score_as_one_pass_in_which_only_the_prompt_is_dense(model, ids, prompt, name):
    """The prompt's keys and values are dense; after it, pieces give what tokens one by one give."""
    way = find(name)
    together, _ = score(model, prompt, way, ids, 15)
    cache = cache_of(model, prompt, way)
    model.set_attn_implementation(way.implementation)
    with torch.no_grad():
        one_by_one = [model(token, past_key_values=cache).logits[0] for token in ids[:, PROMPT:-1].split(1, 1)]
    expected = torch.nn.functional.cross_entropy(torch.cat(one_by_one)[-15:], ids[0, -15:]).item()
    dense, _ = score(model, prompt, find(BASELINE), ids, 15)
    assert together == pytest.approx(expected, rel=2e-5)
    assert together != pytest.approx(dense, rel=2e-4)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("cache-window-24-s2", WindowCache),
        ("cache-spatten-0.25", SpAttenCache),
        ("cache-spatten-flat-0.5", SpAttenCache),
        ("cache-snapkv-20-r4", SnapKVCache),
        ("cache-adasnapkv-20-q8-p5-r4", AdaSnapKVCache),
    ],
)
def test_a_cache_made_of_a_prompt_is_the_one_that_reads_it(model, ids, prompt, name, kind):
    way = find(name)
    made, reads = cache_of(model, prompt, way), way.cache(model.config)
    model.set_attn_implementation("dynattn:dense")
    with torch.no_grad():
        model(ids[:, :PROMPT], past_key_values=reads)
    assert isinstance(made, kind)
    for a, b in zip(made.layers, reads.layers, strict=True):
        assert a.positions.tolist() == b.positions.tolist()
        torch.testing.assert_close(a.keys, b.keys)
    assert made.layers[-1].held < PROMPT


@pytest.mark.parametrize(
    ("name", "draft"),
    [("cache-speckv-24-l4", None), ("cache-speckv-24-l4-draft-nm-1-2-of-6", SelfDraft(layers=6))],
)
def test_a_way_that_reads_the_prompt_anew_holds_what_it_says(model, ids, prompt, name, draft):
    made = cache_of(model, prompt, find(name))
    spec = SpecKV(4, 24, window=6, draft=draft).read(model, ids[:, :PROMPT])
    assert made.get_seq_length() == PROMPT
    for a, b in zip(made.layers, spec.layers, strict=True):
        assert a.positions[..., :-1].tolist() == b.positions.tolist()
        assert a.positions[..., -1].unique().tolist() == [PROMPT - 1]


def test_ways_that_shorten_the_prompt_number_it_anew(model, ids, prompt):
    short = SpecPC(30, window=7, skip=2).compress(model, ids[:, :PROMPT])
    made = cache_of(model, prompt, find("cache-specpc-30"))
    assert [layer.positions.tolist() for layer in made.layers] == [[list(range(30))]] * 8
    reads = FullCache()
    with torch.no_grad():
        model(short.input_ids, past_key_values=reads)
    torch.testing.assert_close(made.layers[-1].keys, reads.layers[-1].keys)
    both = cache_of(model, prompt, find("cache-speckvpc-30-10-l2-draft-nm-1-2"))
    assert both.get_seq_length() == 30
    assert {layer.held for layer in both.layers} == {11}
    assert score(model, prompt, find("cache-speckvpc-30-10-l2"), ids, 15)[0] > 0
    whole = score(model, prompt, find("cache-speckvpc-80-80-l2"), ids, 15)
    assert whole == pytest.approx(score(model, prompt, find(BASELINE), ids, 15), rel=1e-4)


def test_a_prompt_keeps_no_more_queries_than_it_says(model, prompt):
    with pytest.raises(ValueError, match="cache_of: a window must be at most 256 queries: got 300"):
        cache_of(model, prompt, find("cache-snapkv-20-q300-r4"))


def test_a_prompt_can_be_cut_and_its_bytes_told(model, ids, prompt):
    cache = cache_of(model, shortened(prompt, 16), find(BASELINE))
    assert cache.get_seq_length() == 16
    assert cache_bytes(cache) == 8 * 2 * 16 * 2 * 8 * 4  # layers, keys and values, tokens, heads, head_dim, float32
    full = cache_of(model, shortened(prompt, 16), find("dense-in-place"))
    assert cache_bytes(full) > cache_bytes(cache)
    assert step_seconds(model, prompt, find("cache-window-24-s2"), ids[:, PROMPT : PROMPT + 3]) > 0


def test_the_answer_is_the_ways_to_tell(model, ids, prompt):
    with pytest.raises(ValueError, match="a token must stand between"):
        score(model, prompt, find(BASELINE), ids, ids.shape[1] - PROMPT)


@pytest.mark.model
@pytest.mark.parametrize(("cache", "implementation"), [("full", "dynattn:dense"), ("full", "sdpa"), ("window", "sdpa")])
def test_a_real_model_writes_what_transformers_writes(cache, implementation):
    """Token by token, where nothing is evicted."""
    pretrained = load("smollm2")
    prompt = pretrained.processor("The history of the river Danube begins in", return_tensors="pt")
    asked = {"max_new_tokens": 12, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    pretrained.model.set_attn_implementation("sdpa")
    expected = pretrained.model.generate(**prompt, **asked)
    register()
    pretrained.model.set_attn_implementation(implementation)
    made = FullCache(room=5) if cache == "full" else WindowCache(window=64)
    found = pretrained.model.generate(**prompt, **asked, past_key_values=made)
    assert found.sequences.tolist() == expected.sequences.tolist()
    for a, b in zip(found.logits, expected.logits, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=2e-3)
