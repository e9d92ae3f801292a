"""Of several chains of variables, those of one resolve to the value that is asked for."""

from __future__ import annotations

import re
from collections import Counter

import pytest

pytest.importorskip("transformers")

from dynattn.lab.tasks.chains import Chains
from tests.lab.tasks.reading import TEXTS, asked_of


@pytest.mark.parametrize(("chains", "hops"), [(8, 4), (2, 1)])
def test_the_assignments_resolve_to_the_names_that_are_right(chains: int, hops: int):
    mixed = []
    for text, (question,) in asked_of(Chains(items=2, tokens=6000, texts=TEXTS, chains=chains, hops=hops)):
        _, hidden = text.split("\n\nMemorize")
        held: dict[str, str] = {}
        for name, source in re.findall(r"VAR ([A-Z]{5}) = (VAR [A-Z]{5}|\d{5})\.", hidden):
            assert name not in held
            held[name] = held[source.removeprefix("VAR ")] if source.startswith("VAR ") else source
        assert Counter(Counter(held.values()).values()) == {hops + 1: chains}
        asked = re.findall(r"Find all variables that are assigned the value (\d+)", question.text)[-1]
        begins = {name: question.goes_on("they are:", name) for name in held}
        assert question.right == {begins[name] for name, value in held.items() if value == asked}
        assert len(question.right) == hops + 1
        assert question.wrong <= {begins[name] for name, value in held.items() if value != asked}
        mixed.append(list(held.values()))
    assert any(values != sorted(values, key=values.index) for values in mixed)  # chains are woven into each other


def test_a_single_chain_is_another_task():
    with pytest.raises(ValueError, match="ruler-variables: chains must be at least 2"):
        Chains(chains=1)
