"""Common words come as often as the rule says."""

from __future__ import annotations

import math
import re
from collections import Counter
from types import SimpleNamespace

import pytest

pytest.importorskip("transformers")


from dynattn.lab.tasks.common_words import CommonWords
from tests.lab.tasks.reading import BYTES, TEXTS, read_back


@pytest.mark.parametrize(("tokens", "common", "other"), [(4000, 6, 1), (9000, 30, 3)])
def test_common_words_come_as_often_as_the_rule_says(tokens, common, other):
    task = CommonWords(items=2, tokens=tokens, texts=TEXTS)
    for context, answer in read_back(task):
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


def test_chance_in_common_words_is_any_ten_of_the_list():
    task = CommonWords(items=1, tokens=4000, texts=TEXTS)
    data = task.prepare(SimpleNamespace(processor=BYTES))  # type: ignore[arg-type]
    ((context, answer),) = read_back(task)
    listing = context.split("Below is a numbered list")[2].split("\nQuestion")[0]
    words = len(set(re.findall(r"\d+\. ([a-z]+)", listing)))
    guesses = sum(math.log(words - taken) for taken in range(10))
    assert data.chance == pytest.approx(guesses / data.payload[0][1])
    assert len(answer) == data.payload[0][1]
