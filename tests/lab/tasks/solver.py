"""Answers questions about a story from its text alone, by rules."""

from __future__ import annotations

import re
from typing import NamedTuple


class Facts(NamedTuple):
    """What a text says happened, in the order of its chapters: persons and items by place."""

    met: dict[str, str]
    bought: dict[str, str]


def read(text: str) -> Facts:
    """What the story says; the questions behind it say nothing."""
    met, bought = {}, {}
    for number, chapter in enumerate(re.split(r"\nChapter \d+\.\n", text.split("\n\nQuestions")[0])[1:], start=1):
        ((traveller, place),) = re.findall(r"(\w+) travelled to (\w+)\.", chapter)
        ((where, who, met[place]),) = re.findall(r"In (\w+) (\w+) met (\w+)\.", chapter)
        assert (where, who) == (place, traveller), f"chapter {number}"
        for where, who, item in re.findall(r"In (\w+) (\w+) bought a (\w+)\.", chapter):
            assert (where, who, place in bought) == (place, traveller, False), f"chapter {number}"
            bought[place] = item
    return Facts(met, bought)


def solve(facts: Facts, question: str) -> tuple[str, list[str]]:
    """The end of a question, behind which its answers would stand, and the answers."""
    if found := re.match(r"Whom did (\w+) meet in (\w+)\? (In \w+ \w+ met)", question):
        return found[3], [facts.met[found[2]]]
    if found := re.match(r"Where did (\w+) meet (\w+)\? (\w+ met \w+ in)", question):
        return found[3], [place for place, person in facts.met.items() if person == found[2]]
    if found := re.match(r"What did (\w+) buy in (\w+)\? (In \w+ \w+ bought a)", question):
        return found[3], [facts.bought[found[2]]]
    if found := re.match(r"Which item did (\w+) buy right before the (\w+)\? (.*? bought a)", question):
        items = list(facts.bought.values())
        return found[3], [items[items.index(found[2]) - 1]]
    if found := re.match(r"In which (\d+) places did (\w+) buy nothing\? (\w+ bought nothing in)", question):
        nothing = [place for place in facts.met if place not in facts.bought]
        assert len(nothing) == int(found[1])
        return found[3], nothing
    raise AssertionError(f"no rule for {question!r}")
