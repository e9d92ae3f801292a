"""The story: names once each, filler of which nothing can be asked, and its length."""

from __future__ import annotations

import random
import re

import pytest

pytest.importorskip("transformers")

from dynattn.lab.tasks import story
from dynattn.lab.tasks.story import CHAPTERS, ITEMS, PERSONS, PLACES, TRAVELLERS, invent, length, write
from tests.lab.tasks.reading import LETTERS
from tests.lab.tasks.solver import read


def test_a_text_says_what_was_invented():
    told = invent(random.Random(1), 9, ("Paris", "Rome"))
    facts = read(LETTERS.decode(write(LETTERS, told, random.Random(2), 3000)))
    assert list(facts.met.items()) == [(chapter.place, chapter.person) for chapter in told.chapters]
    assert list(facts.bought.items()) == [(c.place, c.item) for c in told.chapters if c.item is not None]
    assert set(facts.met) - set(facts.bought) == {"Paris", "Rome"}


def test_names_stand_once_in_a_story_and_in_one_list():
    lists = (TRAVELLERS, PERSONS, PLACES, ITEMS)
    words = [word for each in lists for word in each]
    assert len(words) == len(set(words))
    assert min(map(len, lists[1:])) >= CHAPTERS
    assert not any(item[0] in "aeiou" for item in ITEMS)  # "a" stands before them
    told = invent(random.Random(0), CHAPTERS)
    for field in ("place", "person", "item"):
        assert len({getattr(chapter, field) for chapter in told.chapters}) == CHAPTERS


def test_filler_holds_no_answer():
    filler = " ".join(part for parts in story._FILLER for part in parts)
    answers = {*TRAVELLERS, *PERSONS, *PLACES, *ITEMS}
    assert not answers & set(re.findall(r"\w+", filler))
    assert not re.search(r"\b(met|bought|travelled|person|thing)\b", filler)


@pytest.mark.parametrize("tokens", [2000, 2001, 2777])
def test_every_chapter_gets_its_share_of_filler(tokens: int):
    text = LETTERS.decode(write(LETTERS, invent(random.Random(3), 8), random.Random(4), tokens))
    assert len(text) == tokens
    filler = [
        len(re.sub(r"\w+ travelled to \w+\.| The (person whom|thing that) [\w ]*\.", "", chapter))
        for chapter in re.split(r"\nChapter \d+: \w+\.\n", text)[1:]
    ]
    assert max(filler) - min(filler) <= 1


def test_longer_stories_have_more_chapters_up_to_a_limit():
    assert [length(tokens) for tokens in (100, 2048, 4096, 8192, 10**6)] == [8, 12, 24, 48, CHAPTERS]


def test_a_story_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"tokens must suffice for 8 chapters, which take \d+ .*: got 500"):
        write(LETTERS, invent(random.Random(0), 8), random.Random(0), 500)
