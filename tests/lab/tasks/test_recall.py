"""Tasks whose answer stands in the context: the rules, read back from the tokens, and that the answer is really there.

A tokenizer of bytes gives the texts back exactly.
"""

from __future__ import annotations

import math
import random
import re
import string
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import torch

pytest.importorskip("transformers")

from transformers import ByT5Tokenizer

from dynattn.lab.models import load
from dynattn.lab.tasks import make
from dynattn.lab.tasks.common_words import CommonWords
from dynattn.lab.tasks.needle import MultiNeedle, Needle
from dynattn.lab.tasks.recall import Puzzle, Recall, excerpt, fresh, hide, score, vocabulary
from dynattn.lab.tasks.texts import Text
from dynattn.lab.tasks.variables import Variables

BYTES = ByT5Tokenizer()
TASKS = (Needle, MultiNeedle, Variables, CommonWords)


def _texts(count: int = 3, sentences: int = 300) -> tuple[Text, ...]:
    draw = random.Random(0)
    words = ["".join(draw.choices(string.ascii_lowercase, k=draw.randint(4, 9))) for _ in range(400)]

    def line() -> str:
        return " ".join(draw.choices(words, k=draw.randint(8, 16))).capitalize() + f" in {draw.randint(1, 9999)}."

    return tuple(Text(f"text {i}", " ".join(line() for _ in range(sentences))) for i in range(count))


TEXTS = _texts()


def _read(task: Recall, tokenizer=BYTES) -> list[tuple[str, str]]:
    """Context with question, and answer, of each item."""
    data = task.prepare(SimpleNamespace(processor=tokenizer, kind="decoder"))  # type: ignore[arg-type]
    return [
        (str(tokenizer.decode(ids[0, :-answer])), str(tokenizer.decode(ids[0, -answer:])))
        for ids, answer in data.payload
    ]


@pytest.mark.parametrize("tokens", [2500, 6001])
@pytest.mark.parametrize("task", [Needle, MultiNeedle, Variables])
def test_contexts_are_exactly_as_long_as_asked_for(task, tokens):
    data = task(items=2, tokens=tokens, texts=TEXTS).prepare(SimpleNamespace(processor=BYTES))
    assert [ids.shape for ids, _ in data.payload] == [(1, tokens)] * 2
    assert (data.length, data.steps, len(data.labels)) == (tokens, 2, 2)


@pytest.mark.parametrize("task", TASKS)
def test_a_seed_decides_everything(task):
    once, again, other = (_read(task(items=2, tokens=9000, texts=TEXTS, seed=seed)) for seed in (3, 3, 4))
    assert once == again
    assert once != other
    assert once[0] != once[1]


def test_the_needle_stands_once_at_its_depth_and_only_its_own_number_answers():
    items = _read(Needle(items=5, tokens=6000, texts=TEXTS))
    for index, (context, answer) in enumerate(items):
        assert re.fullmatch(r" \d{7}", answer)
        number = answer.strip()
        assert context.count(number) == 1
        ((name, stated),) = re.findall(r"One of the special magic numbers for (\S+) is: (\d+)\.", context)
        assert stated == number
        assert context.endswith(f"The special magic number for {name} mentioned in the provided text is")
        assert context.count(name) == 3  # the needle, and twice in the question
        hay = context[context.index("afterwards.\n") : context.index("\nWhat is the special")]
        assert hay.index(number) / len(hay) == pytest.approx(0.1 + 0.2 * index, abs=0.04)
        around = re.search(r"(\S+) One of the special magic .*?: \d+\. (\S+)", hay)
        assert around is not None
        assert around[1].endswith(".")  # between two sentences
        assert around[2].istitle()


def test_several_needles_stand_once_each_and_are_answered_in_the_order_of_the_question():
    orders = []
    for context, answer in _read(MultiNeedle(items=4, tokens=6000, texts=TEXTS, needles=4)):
        stated = re.findall(r"One of the special magic numbers for (\S+) is: (\d+)\.", context)
        assert len(stated) == len(dict(stated)) == len({number for _, number in stated}) == 4
        assert all(context.count(number) == 1 for _, number in stated)
        asked = re.search(r"What are all the special magic numbers for (.*?), and (\S+) mentioned", context)
        assert asked is not None
        names = [*asked[1].split(", "), asked[2]]
        assert answer.split() == [dict(stated)[name] for name in names]
        orders.append([names.index(name) for name, _ in stated])
        places = [context.index(number) / len(context) for _, number in stated]
        assert all(0.22 * part < place < 0.3 + 0.22 * part for part, place in enumerate(places))
    assert len(set(map(tuple, orders))) > 1


def _values(statements: list[tuple[str, str]]) -> dict[str, str]:
    """What each variable holds when the assignments are carried out one after the other."""
    held: dict[str, str] = {}
    for name, source in statements:
        assert name not in held
        held[name] = held[source.removeprefix("VAR ")] if source.startswith("VAR ") else source
    return held


@pytest.mark.parametrize("hops", [1, 4])
def test_the_chain_resolves_to_the_value_asked_for(hops):
    for context, answer in _read(Variables(items=3, tokens=6000, texts=TEXTS, hops=hops)):
        example, text = context.split("\n\nMemorize")
        for part, letters, answered in ((example, 3, example.split("they are:")[1]), (text, 5, answer)):
            held = _values(re.findall(r"VAR ([A-Z]+) = (VAR [A-Z]+|\d+)\.", part))
            (asked,) = re.findall(r"Find all variables that are assigned the value (\d+)", part)
            assert answered.split() == [name for name, value in held.items() if value == asked]
            assert len(held) == hops + 1
            assert {len(name) for name in held} == {letters}
            assert f"{hops + 1} variables are assigned" in part
        for name in answer.split():
            assert context.count(name) == (1 if name == answer.split()[-1] else 2)  # assigned, and passed on


@pytest.mark.parametrize(("tokens", "common", "other"), [(4000, 6, 1), (9000, 30, 3)])
def test_common_words_come_as_often_as_the_rule_says(tokens, common, other):
    task = CommonWords(items=2, tokens=tokens, texts=TEXTS)
    for context, answer in _read(task):
        assert tokens - 50 < len(context) + len(answer) <= tokens  # another word would not fit
        example, listing = context.split("Below is a numbered list")[1:]
        for part, answered in ((example, example.split("list are:")[1].split("\n")[0]), (listing, answer)):
            words = re.findall(r"\d+\. ([a-z]+)", part.split("\nQuestion")[0])
            numbers = re.findall(r"(\d+)\. [a-z]+", part.split("\nQuestion")[0])
            assert list(map(int, numbers)) == list(range(1, len(words) + 1))
            counts = Counter(words)
            wanted = [word for word, _ in counts.most_common(10)]
            assert set(re.findall(r"\d+\. ([a-z]+)", answered)) == set(wanted)
            assert re.findall(r"\d+\. ([a-z]+)", answered) == sorted(wanted, key=words.index)
            if part is listing:
                assert {counts[word] for word in wanted} == {common}
                assert {counts[word] for word in counts if word not in wanted} == {other}
        assert not set(re.findall(r"\d+\. ([a-z]+)", example)) & set(re.findall(r"\d+\. ([a-z]+)", listing))


@pytest.mark.parametrize(
    ("task", "nats"),
    [
        (Needle(items=2, tokens=3000, texts=TEXTS), math.log(9_000_000)),
        (MultiNeedle(items=2, tokens=3000, texts=TEXTS, needles=3), 3 * math.log(9_000_000)),
        (Variables(items=2, tokens=6000, texts=TEXTS, hops=1), 10 * math.log(26)),
    ],
)
def test_chance_is_to_know_what_answers_look_like_and_not_which_it_is(task, nats):
    """A guess among all tokens alike would be 6 nats a byte: a model that never looks back does far better."""
    data = task.prepare(SimpleNamespace(processor=BYTES))
    assert data.chance == pytest.approx(np.mean([nats / answer for _, answer in data.payload]))


def test_chance_in_common_words_is_any_ten_of_the_list():
    task = CommonWords(items=1, tokens=4000, texts=TEXTS)
    data = task.prepare(SimpleNamespace(processor=BYTES))  # type: ignore[arg-type]
    ((context, answer),) = _read(task)
    listing = context.split("Below is a numbered list")[2].split("\nQuestion")[0]
    words = len(set(re.findall(r"\d+\. ([a-z]+)", listing)))
    guesses = sum(math.log(words - taken) for taken in range(10))
    assert data.chance == pytest.approx(guesses / data.payload[0][1])
    assert len(answer) == data.payload[0][1]


def test_what_stands_in_the_text_already_is_drawn_anew():
    draws = iter(["in", "a", "a", "b", "c"])
    assert fresh(lambda: next(draws), "not in here", 2) == ["a", "b"]
    with pytest.raises(ValueError, match=r"2 words that a text lacks.*\['x'\]"):
        fresh(lambda: "x", "", 2)


def test_statements_stand_where_their_depth_is_nearest_and_in_order():
    puzzle = Puzzle("<", ("A", "B", "C"), (0.0, 0.5, 0.55), ">", "!")
    ids, answer = hide(BYTES, puzzle, ["abc."] * 5, 3 + 6 + 23)
    assert BYTES.decode(ids[0]) == "< A abc. abc. B C abc. abc. ab>!"
    assert answer == 1
    with pytest.raises(ValueError, match="they lack 5; pass longer texts"):
        hide(BYTES, puzzle, ["abc."] * 4, 3 + 6 + 25)
    with pytest.raises(ValueError, match="leave room for what is hidden and asked, 9 tokens: got 9"):
        hide(BYTES, puzzle, ["abc."], 9)


def test_excerpts_begin_with_their_text_and_go_on_with_the_next():
    texts = (Text("a", "One. Two."), Text("b", "Three. Four."))
    assert excerpt(texts, 1, 1) == ["Three.", "Four.", "One.", "Two."]
    assert excerpt(texts, 0, 10) == ["One.", "Two.", "Three.", "Four."]
    assert len(excerpt(TEXTS, 0, 10)) < 5


def test_the_vocabulary_is_by_frequency():
    assert vocabulary((Text("a", "stone mill Stone stone a2b mill four river"),)) == ("mill", "stone", "four", "river")


def test_scores_are_of_the_answer_alone_and_hits_want_all_of_it(tiny_decoder):
    pretrained = load(str(tiny_decoder))
    ids = torch.randint(0, 64, (1, 30), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits = pretrained.model(ids).logits[0]
        right = ids.clone()
        right[0, -1] = logits[-2].argmax()
    outcome = score(pretrained, [(ids, 3), (right, 1), (right, 20)], lambda: None)
    assert outcome.scores is not None
    assert outcome.hits is not None
    expected = torch.nn.functional.cross_entropy(logits[-4:-1], ids[0, -3:]).item()
    assert outcome.scores[0] == pytest.approx(expected, rel=1e-5)
    assert outcome.hits.tolist() == [0, 1, 0]


@pytest.mark.parametrize(
    ("task", "match"),
    [
        (lambda: Needle(items=0), "needle: items and tokens"),
        (lambda: MultiNeedle(needles=1), "needles must be at least 2"),
        (lambda: Variables(hops=0), "hops must be at least 1"),
        (lambda: _read(Needle(items=1, tokens=100, texts=TEXTS)), "leave room"),
        (lambda: _read(Needle(items=1, tokens=9000, texts=_texts(1, 40))), "pass longer texts or fewer tokens"),
        (lambda: _read(CommonWords(items=1, tokens=500, texts=TEXTS)), "must suffice for 10 common words"),
        (lambda: _read(CommonWords(items=1, tokens=5000, texts=_texts(1, 1))), "texts of more different words"),
    ],
)
def test_what_cannot_be_made_is_refused(task, match):
    with pytest.raises(ValueError, match=match):
        task()


@pytest.mark.model
@pytest.mark.parametrize("name", ["needle", "multi-needle", "variables", "common-words"])
def test_a_real_model_answers_better_with_the_answer_in_its_context(name):
    """Against the same question and answer under a context that hides another item's."""
    pytest.importorskip("gensim")
    pretrained = load("smollm2")
    task = make(name, pretrained, items=2, tokens=1024)
    data = task.prepare(pretrained)
    (first, answer), (second, other) = data.payload
    assert second.shape[1] <= 1024
    count = min(answer, other)
    strange = torch.cat([second[:, :-other], first[:, -answer:][:, :count]], 1)
    own = first[:, : first.shape[1] - answer + count]
    found = score(pretrained, [(own, count), (strange, count)], lambda: None).scores
    assert found is not None
    assert found[0] < found[1] - 0.5
