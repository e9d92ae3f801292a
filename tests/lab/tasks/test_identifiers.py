"""Identifiers stand once each, and the text alone tells which value belongs to which key."""

from __future__ import annotations

import re
from typing import Any

import pytest

pytest.importorskip("transformers")

from dynattn.lab.tasks.identifiers import Identifiers
from tests.lab.tasks.reading import TEXTS, asked_of

UUID = r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}"


def test_four_of_eight_keys_are_asked_for_and_the_text_holds_their_values():
    orders = []
    for text, questions in asked_of(Identifiers(items=3, tokens=6000, texts=TEXTS)):
        stated = dict(re.findall(rf"One of the special magic uuids for ({UUID}) is: ({UUID})\.", text))
        assert len(stated) == len(set(stated.values())) == 8
        assert all(text.count(value) == 1 for value in stated.values())
        assert len(questions) == 4
        keys = [re.findall(UUID, question.text)[-1] for question in questions]
        assert len(set(keys)) == 4
        for key, question in zip(keys, questions, strict=True):
            begins = {value: question.goes_on(f"{key} is:", value) for value in stated.values()}
            assert question.right == {begins[stated[key]]}
            assert question.wrong < set(begins.values()) - question.right
            assert len(question.wrong) == 3
        places = [text.index(value) / len(text) for value in stated.values()]
        assert places == sorted(places)
        assert max(abs(place - (part + 0.5) / 8) for part, place in enumerate(places)) < 0.12  # one in each part
        orders.append([list(stated).index(key) for key in keys])
    assert any(order != sorted(order) for order in orders)


def test_counts_that_ask_for_nothing_are_refused():
    given: tuple[dict[str, Any], ...] = ({"queried": 0}, {"queried": 1, "others": 0}, {"others": -1})
    for fields in given:
        with pytest.raises(ValueError, match="ruler-needles: queried must be at least 1"):
            Identifiers(**fields)
