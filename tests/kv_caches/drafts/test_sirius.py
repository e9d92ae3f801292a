"""Corrected texts: exactly the dense model's where they are to be, caches as new, and how much was accepted."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")

from dynattn import NM
from dynattn.kv_caches import FullCache
from dynattn.kv_caches.drafts import Griffin, Round, SelfDraft, Sirius, continuation
from dynattn.kv_caches.drafts.sirius import Corrected
from dynattn.kv_caches.layer import Layer
from dynattn.methods import parse
from dynattn.sparsity import Magnitude
from tests.kv_caches.oracle import PROMPT

NEW = 9


@pytest.fixture(scope="module")
def exact(model) -> Any:
    """The tiny decoder in float64, where a pass over several tokens chooses as single steps do."""
    wide = copy.deepcopy(model).double()
    wide.set_attn_implementation("dynattn:dense")
    return wide


def _cheap(name: str, model: Any, ids: torch.Tensor) -> Any:
    return {
        "attention": SelfDraft(NM(1, 4)).of, "fewer layers": SelfDraft(parse("dense"), layers=3).of,
        "weights": Magnitude(0.7).apply, "neurons": Griffin(0.5).of(model, ids), "itself": lambda _: nullcontext(),
    }[name]  # fmt: skip


@pytest.fixture(scope="module")
def written(exact, ids) -> dict[int, list[list[int]]]:
    """The dense model's text, by the length of the prompt."""
    return {length: continuation(exact, ids[:1, :length], NEW).tolist() for length in (1, PROMPT)}


@pytest.mark.parametrize(
    ("name", "kernel", "length"),
    [
        ("attention", 1, PROMPT), ("attention", 16, PROMPT), ("attention", 4, 1), ("fewer layers", 4, PROMPT),
        ("weights", 4, PROMPT), ("neurons", 4, PROMPT), ("itself", 4, PROMPT),
    ],
)  # fmt: skip
@torch.no_grad()
def test_the_exact_text_is_the_dense_models_and_its_cache_is_as_new(exact, ids, written, name, kernel, length):
    prompt = ids[:1, :length]
    found = Sirius(_cheap(name, exact, prompt), kernel).generate(exact, prompt, NEW)
    assert found.tokens.tolist() == written[length]
    text, fresh = torch.cat([prompt, found.tokens], 1)[:, :-1], FullCache()
    exact(text, past_key_values=fresh)
    for layer, new in zip(found.cache.layers, fresh.layers, strict=True):
        assert layer.seen == text.shape[1]
        torch.testing.assert_close(layer.keys, new.keys)
        torch.testing.assert_close(layer.values, new.values)
    assert sum(one.gained for one in found.rounds) == NEW
    assert all(one.gained == min(one.accepted + 1, one.drafted) for one in found.rounds)
    if name == "itself":
        assert [one.accepted for one in found.rounds] == [one.drafted for one in found.rounds]


def test_rounds_do_not_copy_the_cache(exact, ids, monkeypatch):
    """Buffers are made for the prompt, and written over from then on."""
    made = []
    hold = Layer._hold
    monkeypatch.setattr(Layer, "_hold", lambda self, parts: made.append(self) or hold(self, parts))
    found = Sirius(Magnitude(0.7).apply, 4).generate(exact, ids[:1, :PROMPT], NEW)
    assert len(found.rounds) > 1
    assert len(made) == len(found.cache.layers)


def test_something_is_rejected_and_something_accepted(exact, ids):
    found = Sirius(Magnitude(0.7).apply, 4).generate(exact, ids[:1, :PROMPT], NEW)
    assert 0 < found.accepted < 4
    assert any(one.accepted < one.drafted for one in found.rounds)


def test_a_batch_with_padding_goes_on_together(exact, ids):
    mask = torch.ones(2, PROMPT, dtype=torch.int64)
    mask[1, :6] = 0
    found = Sirius(SelfDraft(NM(1, 4)).of, 4).generate(exact, ids[:, :PROMPT], NEW, mask)
    assert found.tokens.tolist() == continuation(exact, ids[:, :PROMPT], NEW, mask).tolist()


@torch.no_grad()
def _drafted(model: Any, cheap: Any, text: torch.Tensor, count: int) -> torch.Tensor:
    """The text and what a cheap forward writes, behind the keys and values of the dense model."""
    cache = FullCache()
    model(text[:, :-1], past_key_values=cache)
    with cheap(model):
        for _ in range(count):
            step = model(text[:, -1:], past_key_values=cache).logits[:, -1:].argmax(-1)
            text = torch.cat([text, step], 1)
    return text


@torch.no_grad()
def test_what_is_plausible_stays_where_it_need_not_be_exact(exact, ids, written):
    prompt, temperature, threshold = ids[:1, :PROMPT], 0.6, 0.1
    cheap = Magnitude(0.7).apply
    found = Sirius(cheap, 4, False, threshold, temperature).generate(exact, prompt, NEW)
    text, rounds = prompt, []
    while text.shape[1] < PROMPT + NEW:  # the definition
        count = min(4, PROMPT + NEW - text.shape[1])
        drafted = _drafted(exact, cheap, text, count)
        logits = exact(drafted, use_cache=False).logits[0, text.shape[1] - 1 : -1]
        likely = (logits / temperature).softmax(-1)
        new: list[int] = []
        for place, token in enumerate(drafted[0, text.shape[1] :].tolist()):
            if likely[place, token] < threshold:
                new.append(int(logits[place].argmax()))
                break
            new.append(token)
        rounds.append((count, new))
        text = torch.cat([text, torch.tensor([new])], 1)
    assert found.tokens.tolist() == text[:, PROMPT:].tolist()
    assert [(one.drafted, one.gained) for one in found.rounds] == [(count, len(new)) for count, new in rounds]
    assert any(one.accepted < one.drafted - 1 for one in found.rounds[:-1])  # and drafts go on behind it
    assert found.tokens.tolist() != written[PROMPT]
    everything = Sirius(cheap, 4, False, 0.0).generate(exact, prompt, 4)
    assert everything.tokens.tolist() == _drafted(exact, cheap, prompt, 4)[:, PROMPT:].tolist()


def test_it_stops_where_every_text_has_ended(exact, ids, monkeypatch):
    prompt = ids[:1, :PROMPT]
    whole = continuation(exact, prompt, NEW)
    end = int(whole[0, 5])
    monkeypatch.setattr(exact.generation_config, "eos_token_id", end)
    expected = continuation(exact, prompt, NEW)
    for cheap in (SelfDraft(NM(1, 4)).of, lambda _: nullcontext()):
        found = Sirius(cheap, 16).generate(exact, prompt, NEW)
        assert found.tokens.tolist() == expected.tolist()
        assert found.tokens[0, -1] == end
        assert found.cache.layers[0].seen == PROMPT + found.tokens.shape[1] - 1
    assert Sirius(SelfDraft(NM(1, 4)).of).generate(exact, prompt, 0).tokens.shape == (1, 0)


def test_costs_are_counted():
    found = Corrected(torch.zeros(1, 26), (Round(16, 15, 16), Round(10, 10, 10)), FullCache())
    assert found.accepted == 12.5
    assert found.cost(0.5) == pytest.approx((26 * 0.5 + 2) / 26)
    assert found.cost(0.5, check=3.0) == pytest.approx((26 * 0.5 + 2 * 3) / 26)


def test_what_cannot_be_is_refused(exact, ids):
    with pytest.raises(TypeError, match="Sirius: cheap must be a function of the model"):
        Sirius(Magnitude(0.5))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="Sirius: kernel must be at least 1: got 0"):
        Sirius(SelfDraft().of, 0)
    with pytest.raises(ValueError, match="Sirius: threshold must be a probability"):
        Sirius(SelfDraft().of, threshold=1.5)
    with pytest.raises(ValueError, match="max_new_tokens must be at least 0: got -1"):
        Sirius(SelfDraft().of).generate(exact, ids, -1)
    padded = torch.ones_like(ids)
    padded[0, -1] = 0
    with pytest.raises(ValueError, match="Sirius: samples must be padded on the left"):
        Sirius(SelfDraft().of).generate(exact, ids, 2, padded)
