"""Needles stand at their depth once, and only their own number answers."""

from __future__ import annotations

import re

import pytest

pytest.importorskip("transformers")


from dynattn.lab.tasks.needle import MultiNeedle, Needle
from tests.lab.tasks.reading import TEXTS, read_back


def test_the_needle_stands_once_at_its_depth_and_only_its_own_number_answers():
    items = read_back(Needle(items=5, tokens=6000, texts=TEXTS))
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
    for context, answer in read_back(MultiNeedle(items=4, tokens=6000, texts=TEXTS, needles=4)):
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
