"""Answers questions about a story from its text alone, by rules."""

from __future__ import annotations

import re
from typing import NamedTuple


class Facts(NamedTuple):
    """What a text says happened, in the order of its chapters: persons and items by place."""

    met: dict[str, str]
    bought: dict[str, str]


def read(text: str) -> Facts:
    """What the story says."""
    met, bought = {}, {}
    parts = re.split(r"\nChapter (\d+): (\w+)\.\n", text)
    for number, (said, title, chapter) in enumerate(zip(parts[1::3], parts[2::3], parts[3::3], strict=True), start=1):
        ((traveller, place),) = re.findall(r"(\w+) travelled to (\w+)\.", chapter)
        ((who, where, person),) = re.findall(r"The person whom (\w+) met in (\w+) was (\w+)\.", chapter)
        assert (int(said), where, who, place) == (number, place, traveller, title)
        met[place] = person
        for who, where, item in re.findall(r"The thing that (\w+) bought in (\w+) was a (\w+)\.", chapter):
            assert (where, who, place in bought) == (place, traveller, False), f"chapter {number}"
            bought[place] = item
    return Facts(met, bought)


def solve(facts: Facts, question: str) -> tuple[str, list[str]]:
    """The end of a question, behind which its answers would stand, and the answers."""
    if found := re.match(r"Whom did (\w+) meet in (\w+)\? (The person whom \1 met in \2 was)", question):
        return found[3], [facts.met[found[2]]]
    if found := re.match(r"Where was (\w+) in chapter (\d+)\? (Chapter \2:)", question):
        return found[3], [list(facts.met)[int(found[2]) - 1]]
    if found := re.match(r"What did (\w+) buy in (\w+)\? (The thing that \1 bought in \2 was a)", question):
        return found[3], [facts.bought[found[2]]]
    if found := re.match(r"Which thing did (\w+) buy right before the (\w+)\? (.*? was a)", question):
        items = list(facts.bought.values())
        return found[3], [items[items.index(found[2]) - 1]]
    if found := re.match(r"In which (\d+) places did (\w+) buy nothing\? (\w+ bought nothing in)", question):
        nothing = [place for place in facts.met if place not in facts.bought]
        assert len(nothing) == int(found[1])
        return found[3], nothing
    raise AssertionError(f"no rule for {question!r}")
