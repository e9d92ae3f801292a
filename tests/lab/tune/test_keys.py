"""Hidden numbers stand where they should, and are scored one by one."""

from __future__ import annotations

import re
from types import SimpleNamespace

import pytest
import torch
from torch import nn

pytest.importorskip("transformers")

from dynattn.lab.models import load
from dynattn.lab.tasks.texts import read
from dynattn.lab.tune import pieces
from dynattn.lab.tune.keys import Keys


@pytest.fixture(scope="module")
def pretrained(tiny_decoder):
    return load(str(tiny_decoder))


@pytest.fixture(scope="module")
def ids(pretrained, texts):
    return tuple(piece.ids for piece in pieces.cut(pretrained, read(texts), 240, 2))


def test_each_number_is_stated_once_and_asked_for_once(pretrained, ids):
    data = Keys(ids, keys=3).prepare(pretrained)
    assert len(data.labels) == 3 * len(ids)
    for hidden in data.payload:
        whole = hidden.ids[0].tolist()
        assert len(whole) <= 240
        for start, stop in hidden.answers:
            number = whole[start:stop]
            places = [i for i in range(len(whole)) if whole[i : i + len(number)] == number]
            assert start in places


def test_scores_are_those_of_single_forwards(pretrained, ids):
    task = Keys(ids, keys=3)
    data = task.prepare(pretrained)
    found = task.evaluate(pretrained, data, lambda: None)
    expected = []
    with torch.inference_mode():
        for hidden in data.payload:
            logits = pretrained.model(input_ids=hidden.ids).logits[0]
            for start, stop in hidden.answers:
                at = slice(start - 1, stop - 1)
                expected.append(nn.functional.cross_entropy(logits[at], hidden.ids[0, start:stop]).item())
    assert found.scores is not None
    assert found.scores.tolist() == pytest.approx(expected, abs=1e-5)
    assert len(found.scores) == len(data.labels)


class _Letters:
    """A tokenizer of single characters."""

    def __call__(self, text: str, add_special_tokens: bool) -> dict[str, list[int]]:
        return {"input_ids": [ord(letter) for letter in text]}


def test_what_is_asked_for_is_what_was_said_and_other_seeds_draw_others():
    pretrained = SimpleNamespace(processor=_Letters())
    text = torch.tensor([[ord("x")] * 900])
    found = [Keys((text, text), keys=5, seed=seed).prepare(pretrained).payload for seed in (0, 1)]  # type: ignore[arg-type]
    answers = []
    for hidden in (each for payload in found for each in payload):
        said = "".join(map(chr, hidden.ids[0].tolist()))
        assert len(said) == 900
        sentences = re.findall(r" The number of (\w+) is (\d{5})\.", said)
        stated, asked = dict(sentences[:5]), sentences[5:]
        assert dict(asked) == stated
        assert len(stated) == len(asked) == 5
        assert said.endswith("".join(f" The number of {name} is {number}." for name, number in asked))
        assert [said[start:stop].strip() for start, stop in hidden.answers] == [number for _, number in asked]
        answers.append(tuple(sorted(stated.items())))
    assert len(set(answers)) == 4


def test_short_texts_hold_fewer(pretrained, ids):
    assert len(Keys(ids, keys=12).prepare(pretrained).payload[0].answers) < 12
    uneven = Keys((ids[0], ids[1][:, :150]), keys=12).prepare(pretrained)
    assert len({len(each.answers) for each in uneven.payload}) == 1
    assert len(uneven.labels) == 2 * len(uneven.payload[0].answers)
    with pytest.raises(ValueError, match="longer --length"):
        Keys(tuple(each[:, :16] for each in ids)).prepare(pretrained)
