"""Tasks whose answer stands in the context: contexts that hold it where they must, scores of the answer alone."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

pytest.importorskip("transformers")


from dynattn.lab.models import load
from dynattn.lab.tasks import make
from dynattn.lab.tasks.common_words import CommonWords
from dynattn.lab.tasks.needle import MultiNeedle, Needle
from dynattn.lab.tasks.recall import Puzzle, excerpt, fresh, hide, score, vocabulary
from dynattn.lab.tasks.texts import Text
from dynattn.lab.tasks.variables import Variables
from tests.covering import part
from tests.lab.tasks.reading import BYTES, TEXTS, made_up, read_back

TASKS = (Needle, MultiNeedle, Variables, CommonWords)


@pytest.mark.parametrize("tokens", [2500, 6001])
@pytest.mark.parametrize("task", [Needle, MultiNeedle, Variables])
def test_contexts_are_exactly_as_long_as_asked_for(task, tokens):
    data = task(items=2, tokens=tokens, texts=TEXTS).prepare(SimpleNamespace(processor=BYTES))
    assert [ids.shape for ids, _ in data.payload] == [(1, tokens)] * 2
    assert (data.length, data.steps, len(data.labels)) == (tokens, 2, 2)


@pytest.mark.parametrize("task", TASKS)
def test_a_seed_decides_everything(task):
    once, again, other = (read_back(task(items=2, tokens=9000, texts=TEXTS, seed=seed)) for seed in (3, 3, 4))
    assert once == again
    assert once != other
    assert once[0] != once[1]


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
        (lambda: read_back(Needle(items=1, tokens=100, texts=TEXTS)), "leave room"),
        (
            lambda: read_back(Needle(items=1, tokens=9000, texts=made_up(1, 40))),
            "pass longer texts or fewer tokens",
        ),
        (lambda: read_back(CommonWords(items=1, tokens=500, texts=TEXTS)), "must suffice for 10 common words"),
        (
            lambda: read_back(CommonWords(items=1, tokens=5000, texts=made_up(1, 1))),
            "texts of more different words",
        ),
    ],
)
def test_what_cannot_be_made_is_refused(task, match):
    with pytest.raises(ValueError, match=match):
        task()


@pytest.mark.model
@pytest.mark.parametrize(
    ("name", "tokens"), part([("needle", 512), ("multi-needle", 512), ("variables", 512), ("common-words", 1024)], 4)
)
def test_a_real_model_answers_better_with_the_answer_in_its_context(name, tokens):
    """Against the same question and answer under a context that hides another item's."""
    pytest.importorskip("gensim")
    pretrained = load("smollm2")
    task = make(name, pretrained, items=2, tokens=tokens)
    data = task.prepare(pretrained)
    (first, answer), (second, other) = data.payload
    assert second.shape[1] <= tokens
    count = min(answer, other)
    strange = torch.cat([second[:, :-other], first[:, -answer:][:, :count]], 1)
    own = first[:, : first.shape[1] - answer + count]
    found = score(pretrained, [(own, count), (strange, count)], lambda: None).scores
    assert found is not None
    assert found[0] < found[1] - 0.5
