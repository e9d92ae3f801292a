"""SpecKV-PC: one after the other, by one draft."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("transformers")

from dynattn.kv_caches.drafts import SelfDraft, SpecKV, SpecKVPC, SpecPC, continuation
from tests.kv_caches.oracle import PROMPT


@pytest.fixture(autouse=True)
def _ours(model):
    model.set_attn_implementation("dynattn:dense")


@pytest.mark.parametrize(("draft", "padding"), [(None, 4), (SelfDraft(layers=2), 0)])
def test_it_is_specpc_and_then_speckv_with_what_the_draft_wrote_after_the_whole_prompt(model, ids, draft, padding):
    prompt, mask = ids[:, :PROMPT], torch.ones(2, PROMPT, dtype=torch.int64)
    mask[0, :padding] = 0
    spec = SpecKVPC(SpecKV(4, capacity=8, window=3), SpecPC(14, window=4, width=3, skip=1, draft=draft))
    found = spec.read(model, prompt, mask)
    short, ahead = spec.prompt.look_ahead(model, prompt, 4, mask)
    if draft is None:
        assert ahead.tolist() == continuation(model, prompt, 4, mask).tolist()
    assert found.input_ids.tolist() == short.input_ids.tolist()
    expected = spec.cache.read(model, short.input_ids, short.attention_mask, ahead)
    for a, b in zip(found.past_key_values.layers, expected.layers, strict=True):
        assert a.positions.tolist() == b.positions.tolist()
        torch.testing.assert_close(a.keys, b.keys)
    text = model.generate(**found._asdict(), max_new_tokens=3, do_sample=False)
    assert text.shape == (2, 14 + 3)


def test_with_room_for_everything_the_text_is_the_dense_one(model, ids):
    prompt = ids[:, :PROMPT]
    asked = {"max_new_tokens": 5, "do_sample": False}
    found = SpecKVPC(SpecKV(5, capacity=PROMPT - 1, window=4), SpecPC(PROMPT, window=4)).read(model, prompt)
    assert model.generate(**found._asdict(), **asked).tolist() == model.generate(prompt, **asked).tolist()


def test_one_draft_and_no_more_tokens_than_there_are():
    with pytest.raises(ValueError, match="SpecKVPC: the draft is that of prompt"):
        SpecKVPC(SpecKV(4, draft=SelfDraft()))
    with pytest.raises(ValueError, match="SpecKVPC: cache must hold no more than prompt keeps: got capacity 256, 128"):
        SpecKVPC(SpecKV(4), SpecPC(128))
    assert SpecKVPC(SpecKV(4)).prompt.capacity == 2048
