"""Chains of variables resolve to the value asked for."""

from __future__ import annotations

import re

import pytest

pytest.importorskip("transformers")


from dynattn.lab.tasks.variables import Variables
from tests.lab.tasks.reading import TEXTS, read_back


def _values(statements: list[tuple[str, str]]) -> dict[str, str]:
    """What each variable holds when the assignments are carried out one after the other."""
    held: dict[str, str] = {}
    for name, source in statements:
        assert name not in held
        held[name] = held[source.removeprefix("VAR ")] if source.startswith("VAR ") else source
    return held


@pytest.mark.parametrize("hops", [1, 4])
def test_the_chain_resolves_to_the_value_asked_for(hops):
    for context, answer in read_back(Variables(items=3, tokens=6000, texts=TEXTS, hops=hops)):
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
