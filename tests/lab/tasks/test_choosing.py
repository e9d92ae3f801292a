"""Tasks whose answers are chosen among candidates: what they score, and where the answers would begin."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("transformers")

from dynattn.integrations.transformers import register
from dynattn.lab.models import load
from dynattn.lab.tasks import find
from dynattn.lab.tasks.choosing import Question, Slot, apart, ask, asked, width
from dynattn.lab.tasks.stories import StoryRetrieval
from tests.lab.tasks.reading import CHOSEN, LETTERS, TEXTS


def logits(**values: float) -> torch.Tensor:
    """Of a vocabulary of letters."""
    out = torch.zeros(400)
    for letter, value in values.items():
        out[ord(letter)] = value
    return out


def slot(right: str, wrong: str) -> Slot:
    return Slot(torch.zeros(1, 1), *(tuple(map(ord, letters)) for letters in (right, wrong)))


def test_a_question_scores_the_share_of_its_right_answers_among_the_likeliest():
    assert slot("a", "bc").score(logits(a=3, b=2, c=1)) == 1
    assert slot("a", "bc").score(logits(a=2, b=3, c=1)) == 0
    assert slot("a", "bc").score(logits(a=2, b=1, c=1, d=9)) == 1  # what is no candidate plays no part
    assert slot("abc", "de").score(logits(a=5, d=4, b=3, e=2, c=1)) == pytest.approx(2 / 3)
    assert slot("ab", "cd").score(logits(a=5, b=5, c=1, d=1)) == 1
    assert slot("a", "bc").chance == pytest.approx(1 / 3)


def test_a_model_that_holds_all_for_equally_likely_knows_nothing():
    assert slot("a", "bc").score(logits()) == 0
    assert slot("ab", "c").score(logits(a=1, b=0, c=0)) == 0.5
    assert math.isnan(slot("a", "bc").score(logits(b=math.nan)))


def test_candidates_are_told_apart_by_the_first_token_that_they_do_not_share():
    first, second = ask(
        LETTERS, [Question("Who?", ["house"], ["hotel", "hound", "hoax"]), Question("What?", ["sun"], ["moon"])]
    )
    assert LETTERS.decode(first.ids[0].tolist()) == "Who? ho"
    assert LETTERS.decode(first.right) == "u"
    assert LETTERS.decode(first.wrong) == "ta"  # "hound" begins as the right answer does
    assert LETTERS.decode(second.ids[0].tolist()) == "\nWhat? "  # as long as the other one
    assert (LETTERS.decode(second.right), LETTERS.decode(second.wrong)) == ("s", "m")
    built = asked("x", [1, 2, 3], (first, second))
    assert width(built.slots) == 7
    assert built.prompt.tolist() == [[1, 2, 3, *map(ord, "Who? ho")]]


def test_there_are_four_candidates_for_each_right_answer():
    letters = [f"{letter}x" for letter in "abcdefghijklmnopqrstuvwxyz"]
    for right, candidates in ((1, 4), (2, 8), (3, 12)):
        (found,) = ask(LETTERS, [Question("?", letters[:right], letters[right:])])
        assert (len(found.right), len(found.wrong)) == (right, candidates - right)


@pytest.mark.parametrize(
    ("right", "wrong"), [(["house"], ["houses"]), (["ab", "ac"], ["x"]), (["a"], []), (["moon"], ["moon"])]
)
def test_candidates_that_no_token_tells_apart_are_refused(right: list[str], wrong: list[str]):
    with pytest.raises(ValueError, match="candidates must begin with different tokens"):
        ask(LETTERS, [Question("?", right, [*wrong, *([] if len(right) == 1 else ["a"])])])


def test_words_apart_are_the_first_that_differ():
    assert apart(LETTERS, ["apple", "april", "bear", "bean", "cat"], 3) == ["apple", "bear", "cat"]
    with pytest.raises(ValueError, match="4 words must begin with different tokens: 3 of 5 do"):
        apart(LETTERS, ["apple", "april", "bear", "bean", "cat"], 4)


@pytest.mark.parametrize("name", CHOSEN)
def test_prompts_are_exactly_as_long_as_asked_for_and_a_seed_decides_them(name: str):
    task = find(name)
    texts = {} if name in ("ruler-frequent-words",) or name.startswith("story") else {"texts": TEXTS}

    def built(seed: int, items: int, tokens: int):
        data = task(items=items, tokens=tokens, seed=seed, **texts).prepare(SimpleNamespace(processor=LETTERS))  # type: ignore[call-arg, arg-type]
        assert (data.length, data.steps, len(data.labels)) == (tokens, items, items)
        assert {one.ids.shape[1] + slot.ids.shape[1] for one in data.payload for slot in one.slots} == {tokens}
        assert [each["input_ids"].shape for each in data.examples] == [(1, tokens)] * items
        assert data.chance is not None
        assert 0 < data.chance <= 0.5  # letters tell few names apart
        return [one.prompt[0].tolist() for one in data.payload]

    once = built(3, 2, 9001)
    assert built(3, 1, 9001) == once[:1]  # more items leave those that there are as they are
    assert built(4, 1, 9001) != once[:1]
    assert once[0] != once[1]
    assert built(3, 1, 9000) != once[:1]


@pytest.mark.parametrize("method", ["sdpa", "dynattn:nm-2-4", "dynattn:window-8-s2"])
def test_every_question_is_read_after_the_text_and_sees_no_other_one(tiny_decoder, method: str):
    pretrained = load(str(tiny_decoder))
    if method != "sdpa":
        register(method.removeprefix("dynattn:"))
    draw = torch.Generator().manual_seed(0)
    text, *questions = (torch.randint(0, 64, (1, length), generator=draw) for length in (20, 6, 6, 6))
    slots = tuple(Slot(ids, (3, 9), (4, 5, 6)) for ids in questions)
    steps: list[int] = []
    data = SimpleNamespace(payload=[asked("x", text[0].tolist(), slots)] * 2)
    pretrained.model.set_attn_implementation(method)
    found = StoryRetrieval().evaluate(pretrained, data, lambda: steps.append(1))  # type: ignore[arg-type]
    with torch.no_grad():
        told = [pretrained.model(torch.cat([text, ids], 1)).logits[0, -1] for ids in questions]
    expected = sum(slot.score(logits) for slot, logits in zip(slots, told, strict=True)) / 3
    assert found.scores is not None
    assert found.scores.tolist() == pytest.approx([expected] * 2)
    assert len(steps) == 2


def test_sizes_that_are_not_positive_are_refused():
    with pytest.raises(ValueError, match="story-retrieval: items and tokens must be at least 1: got 0, 2048"):
        StoryRetrieval(items=0)
