"""SpecPC: a prompt is shortened to what a draft attends to, by hand and against loops."""

from __future__ import annotations

from typing import Any

import pytest
import torch

pytest.importorskip("transformers")

from dynattn.kv_caches.drafts import SelfDraft, SpecPC, continuation
from tests.kv_caches import choices
from tests.kv_caches.oracle import LAYERS, PROMPT

PC: dict[str, Any] = {"capacity": 10, "window": 4, "width": 4, "skip": 1}


@pytest.fixture(autouse=True)
def _ours(model):
    model.set_attn_implementation("dynattn:dense")


def _received(call, sample, rows, rising, first=0):
    """What each token receives at most, from queries whose weight rises to 1."""
    tokens, heads = call.key.shape[2], range(call.query.shape[1])
    factor = [i / (rows - 1) if rising else 1.0 for i in range(rows)]
    given = [[choices.weights(call, sample, head, tokens - rows + i, first) for head in heads] for i in range(rows)]
    return [max(factor[i] * given[i][head][j] for i in range(rows) for head in heads) for j in range(tokens)]


def _kept(score, capacity, window, width, first=0):
    """Plainly: the latest, then by pooled score with neighbours, the nearest first."""
    tokens = range(first, len(score))
    before, behind = (width - 1) // 2, width // 2
    pooled = choices.max_pooled(score, before, behind)
    kept = list(tokens)[-window:]
    for j in sorted(tokens, key=lambda j: (-pooled[j], j)):
        for near in sorted(range(j - before, j + behind + 1), key=lambda i: (abs(i - j), i)):
            if near in tokens and near not in kept:
                kept.append(near)
    return sorted(kept[:capacity])


@pytest.mark.parametrize("change", [{}, {"width": 5, "skip": 0}, {"window": 10}, {"skip": LAYERS - 1}])
def test_the_prompt_is_shortened_to_what_the_draft_attends_to(model, ids, change):
    spec = SpecPC(**{**PC, **change})
    prompt = ids[:, :PROMPT]
    short = spec.compress(model, prompt)
    calls = choices.calls_of(model, prompt)[spec.skip :]
    for sample in range(2):
        layers = [_received(call, sample, spec.window, True) for call in calls]
        score = [max(layer[j] for layer in layers) for j in range(PROMPT)]
        expected = _kept(score, spec.capacity, spec.window, spec.width)
        assert short.positions[sample].tolist() == expected
        assert short.input_ids[sample].tolist() == prompt[sample, expected].tolist()
    assert short.attention_mask.all()


def test_further_steps_of_the_draft_choose_too(model, ids):
    """The tokens that it has written are read again, but for the last, and weigh 1."""
    spec, prompt = SpecPC(**PC), ids[:, :PROMPT]
    short, ahead = spec.look_ahead(model, prompt, 4)
    assert ahead.tolist() == continuation(model, prompt, 4).tolist()
    calls = choices.calls_of(model, torch.cat([prompt, ahead[:, :-1]], 1))[spec.skip :]
    prompts = choices.calls_of(model, prompt)[spec.skip :]
    for sample in range(2):
        given = [_received(call, sample, spec.window, True) for call in prompts]
        given += [_received(call, sample, 3, False)[:PROMPT] for call in calls]
        score = [max(each[j] for each in given) for j in range(PROMPT)]
        assert short.positions[sample].tolist() == _kept(score, spec.capacity, spec.window, spec.width)


def test_on_hand_made_attention():
    """Two peaks: the higher one comes with its neighbours, of the lower one there is room for the nearest alone."""
    received = torch.zeros(1, 20)
    received[0, 3], received[0, 12] = 0.9, 0.5
    spec = SpecPC(capacity=6, window=2, width=3)
    assert spec.chosen(received).tolist() == [[1, 2, 3, 4, 18, 19]]  # 2, 3 and 4 share the peak's score: 2 is the first
    wider = SpecPC(capacity=8, window=2, width=3)
    assert wider.chosen(received).tolist() == [[1, 2, 3, 4, 5, 11, 18, 19]]
    one = SpecPC(capacity=5, window=2, width=1)
    assert one.chosen(received).tolist() == [[0, 3, 12, 18, 19]]  # of those that got nothing, the first
    even = SpecPC(capacity=5, window=1, width=2)  # a token, and the one behind it
    assert even.chosen(received).tolist() == [[2, 3, 4, 11, 19]]
    mask = torch.tensor([[0] * 16 + [1] * 4])
    assert spec.chosen(received, mask).tolist() == [[14, 15, 16, 17, 18, 19]]
    assert SpecPC(capacity=3, window=2, width=3).chosen(received, mask).tolist() == [[16, 18, 19]]


def test_padding_on_the_left_changes_nothing(model, ids):
    padding = 5
    mask = torch.ones(2, PROMPT, dtype=torch.int64)
    mask[0, :padding] = 0
    spec = SpecPC(**PC)
    both, alone = spec.compress(model, ids[:, :PROMPT], mask), spec.compress(model, ids[:1, padding:PROMPT])
    assert both.positions[0].tolist() == [j + padding for j in alone.positions[0].tolist()]
    mask[0, :18] = 0  # less text than is kept
    found = spec.compress(model, ids[:, :PROMPT], mask)
    assert found.attention_mask[0].tolist() == [0] * 4 + [1] * 6
    assert found.input_ids[0, 4:].tolist() == ids[0, 18:PROMPT].tolist()
    asked = {"max_new_tokens": 3, "do_sample": False}
    text = model.generate(found.input_ids, attention_mask=found.attention_mask, **asked)[0, 10:]
    alone_text = model.generate(ids[:1, 18:PROMPT], attention_mask=mask[:1, 18:], **asked)[0, 6:]
    assert text.tolist() == alone_text.tolist()
    mask[1, -1] = 0
    with pytest.raises(ValueError, match="SpecPC: samples must be padded on the left"):
        spec.compress(model, ids[:, :PROMPT], mask)


def test_a_prompt_that_fits_stays_as_it_is(model, ids):
    prompt = ids[:, :10]
    short = SpecPC(**PC).compress(model, prompt)
    assert short.input_ids.tolist() == prompt.tolist()
    assert short.positions.tolist() == [list(range(10))] * 2


def test_a_self_draft_chooses_otherwise(model, ids):
    own, draft = (SpecPC(**PC, draft=draft).compress(model, ids) for draft in (None, SelfDraft(layers=2)))
    assert own.positions.tolist() != draft.positions.tolist()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"capacity": 0}, "SpecPC: capacity must be at least 1"),
        ({"window": 11}, "SpecPC: capacity must be at least window: got 10, 11"),
        ({"skip": -1}, "SpecPC: skip must be at least 0"),
    ],
)
def test_what_cannot_be_is_refused(given, said):
    with pytest.raises(ValueError, match=said):
        SpecPC(**{**PC, **given})


def test_what_cannot_choose_is_refused(model, ids):
    with pytest.raises(ValueError, match=rf"SpecPC: skip must leave layers of the draft: got {LAYERS}"):
        SpecPC(**{**PC, "skip": LAYERS}).compress(model, ids)
    model.set_attn_implementation("sdpa")
    with pytest.raises(ValueError, match="SpecPC: the model must attend by this project's attention"):
        SpecPC(**PC).compress(model, ids)
