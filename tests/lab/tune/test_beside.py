"""One forward tells of a text what two tasks would ask for."""

from __future__ import annotations

import pytest
import torch
from torch import nn

pytest.importorskip("transformers")

from dynattn.lab.models import load
from dynattn.lab.tasks.texts import read
from dynattn.lab.tune import pieces
from dynattn.lab.tune.beside import TextWithKeys
from dynattn.lab.tune.keys import Keys


@pytest.fixture(scope="module")
def task(tiny_decoder, texts):
    pretrained = load(str(tiny_decoder))
    ids = tuple(piece.ids for piece in pieces.cut(pretrained, read(texts), 240, 2))
    return pretrained, TextWithKeys(Keys(ids, keys=3), ("first", "second"))


def test_scores_are_those_of_the_texts_own_tokens_and_of_the_numbers(task):
    pretrained, both = task
    data = both.prepare(pretrained)
    found = both.evaluate(pretrained, data, lambda: None)
    numbers = both.keys.evaluate(pretrained, both.keys.prepare(pretrained), lambda: None)
    assert found.beside == pytest.approx(numbers.scores, abs=1e-5)
    for score, hidden in zip(found.scores, data.payload, strict=True):
        with torch.inference_mode():
            logits = pretrained.model(input_ids=hidden.ids).logits[0, :-1]
        told = nn.functional.cross_entropy(logits, hidden.ids[0, 1:], reduction="none")
        assert score == pytest.approx(told[hidden.text[1:]].mean().item(), abs=1e-5)
    assert data.labels == both.titles
    assert "with 3 numbers hidden in each" in data.summary


def test_the_texts_own_tokens_are_what_it_was_made_of(task):
    pretrained, both = task
    for hidden, piece in zip(both.prepare(pretrained).payload, both.keys.pieces, strict=True):
        own = hidden.ids[0][hidden.text]
        assert torch.equal(own, piece[0, : len(own)])
        assert not any(hidden.text[start:stop].any() for start, stop in hidden.answers)
        assert len(own) >= 0.5 * piece.shape[1]
