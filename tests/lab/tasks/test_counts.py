"""Words come as often as the rules say, and those that come most often are right."""

from __future__ import annotations

import re
from collections import Counter

import pytest

pytest.importorskip("transformers")

from dynattn.lab.tasks.counts import CommonWordsChosen, FrequentWords
from tests.lab.tasks.reading import TEXTS, asked_of, made_up


@pytest.mark.parametrize(("tokens", "common", "other"), [(4000, 6, 1), (9000, 30, 3)])
def test_ten_words_are_common(tokens: int, common: int, other: int):
    for text, (question,) in asked_of(CommonWordsChosen(items=2, tokens=tokens, texts=TEXTS)):
        _, _, listing = text.split("Below is a numbered list")
        counts = Counter(re.findall(r"\d+\. ([a-z]+)", listing))
        assert Counter(counts.values())[common] == 10
        assert set(counts.values()) == {common, other}
        begins = {word: question.goes_on("list are: 1.", word) for word in counts}
        assert question.right == {begins[word] for word, times in counts.items() if times == common}
        assert len(question.right) == 10
        assert question.wrong <= {begins[word] for word, times in counts.items() if times == other}


def test_three_coded_words_are_frequent_and_the_dots_are_more_so():
    for text, (question,) in asked_of(FrequentWords(items=2, tokens=8000)):
        words = text.split("coded words. ")[1].split()
        counts = Counter(word for word in words if re.fullmatch("[a-z]{6}", word))
        ranked = [word for word, _ in counts.most_common()]
        assert counts[ranked[2]] > counts[ranked[3]]
        assert words.count("...") > counts[ranked[0]]
        for rank, word in enumerate(ranked[:10], start=2):  # the dots have rank 1
            assert counts[word] == pytest.approx(4 * counts[ranked[0]] / rank**2, abs=2)
        begins = {word: question.goes_on("words are:", word) for word in ranked}
        assert question.right == {begins[word] for word in ranked[:3]}
        assert len(question.right) == 3
        assert question.wrong <= {begins[word] for word in ranked[3:]}  # words that stand in the text


@pytest.mark.parametrize(
    ("task", "match"),
    [
        (lambda: asked_of(CommonWordsChosen(items=1, tokens=900, texts=TEXTS)), "ruler-common-words: tokens and texts"),
        (lambda: asked_of(CommonWordsChosen(items=1, tokens=5000, texts=made_up(1, 1))), "of more different words"),
        (lambda: asked_of(FrequentWords(items=1, tokens=300)), "ruler-frequent-words: tokens and texts must suffice"),
        (lambda: FrequentWords(alpha=1.0), "alpha must be above 1: got 1.0"),
    ],
)
def test_what_cannot_be_made_is_refused(task, match: str):
    with pytest.raises(ValueError, match=match):
        task()
