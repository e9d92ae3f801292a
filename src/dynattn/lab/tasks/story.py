"""A story to be asked about: in every chapter a traveller comes to a place, meets a person there and buys an item.

    Chapter 3: Lisbon. Anna travelled to Lisbon. … The person whom Anna met in Lisbon was Thomas. …
    The thing that Anna bought in Lisbon was a lantern. …

Names, places and items belong to one chapter each. What is asked for stands next to what it is asked by, since small
models look no farther. Between these sentences stands filler, of which nothing can be asked. All of it
is drawn from lists, so that no data is needed.

Source: the story tasks of The Sparse Frontier, arXiv:2504.17768. Words and sentences are this project's own.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any, NamedTuple

from dynattn.lab.tasks.recall import encode


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


TRAVELLERS = ("Anna", "Boris", "Clara", "Edgar", "Greta", "Ivan", "Marta", "Oscar")
PERSONS = _words(
    "Abel Agnes Albert Alice Arthur Barbara Bernard Carla Cecil Charles Daniel David Diana Donald Doris Edith Edward "
    "Elena Emma Ernest Eva Felix Fiona Frank Fred George Gloria Hannah Harold Harry Helen Henry Howard Hugo Igor Irene "
    "Isaac Jacob James Jane Jason Julia Karen Karl Kevin Laura Leon Linda Louis Lucy Luke Maria Martin Max Monica "
    "Nathan Nina Nora Olga Oliver Otto Patrick Paul Peter Quentin Rachel Ralph Rita Robert Roger Rosa Samuel Sarah "
    "Simon Sophie Stella Susan Theodore Thomas Tom Ursula Vera Victor Walter Wendy William Xavier Yvonne Zoe"
)
PLACES = _words(
    "Amsterdam Ankara Athens Baghdad Bangkok Barcelona Belgrade Berlin Bogota Boston Bremen Brussels Budapest Cairo "
    "Chicago Copenhagen Dallas Damascus Delhi Denver Dresden Dublin Edinburgh Florence Frankfurt Geneva Glasgow "
    "Hamburg Havana Helsinki Houston Istanbul Jakarta Jerusalem Karachi Kiev Kyoto Lagos Lima Lisbon Liverpool London "
    "Lyon Madrid Manchester Manila Melbourne Miami Milan Montreal Moscow Munich Nairobi Naples Oslo Ottawa Oxford "
    "Paris Perth Philadelphia Portland Prague Quebec Rio Rome Rotterdam Salzburg Santiago Seattle Seoul Seville Sofia "
    "Stockholm Sydney Tehran Tokyo Toronto Turin Utrecht Valencia Vancouver Venice Vienna Warsaw Washington York "
    "Zagreb Zurich"
)
ITEMS = _words(
    "balloon banjo barrel basket bell blanket book bottle bowl box bracelet brush bucket button cake camera candle "
    "carpet chain chair clock coat coin compass cup curtain desk diamond doll drum fan flag flute fork gate glove "
    "guitar hammer hat helmet jacket jar kettle key kite knife ladder lamp lantern letter lock map mask medal mirror "
    "necklace needle notebook painting pan pencil phone piano pillow pipe pistol plate pot puppet purse quilt radio "
    "ribbon ring robe rope saddle scarf shield shirt shovel spoon statue stick sword table tent ticket torch towel toy "
    "tray trumpet vase violin wallet watch wheel whistle wig zipper"
)
CHAPTERS = 60
"""So many chapters a story has at most: longer ones have more filler."""

_PER_CHAPTER, _FEWEST = 170, 8  # tokens; chapters
_BEFORE = (
    "Read the following story. Remember where {traveller} went, whom {traveller} met and what {traveller} bought.\n"
)
_HEADING = "\nChapter {number}: {place}.\n"
_FILLER = (
    (
        "The road went on for miles", "Clouds hung low over the fields", "It rained until the evening",
        "The river was wide and slow", "A cold wind came from the hills", "Nothing moved in the streets",
        "The sun was already low", "Fog lay upon the water", "The night had been long and quiet",
        "Dust covered the old walls", "The trees stood bare along the way", "Snow was falling again",
    ),
    (
        "and nobody said a word", "while far away a dog barked", "as it had always been", "and the air was still",
        "but there was no hurry", "and the hours went by slowly", "so that it was hard to see far",
        "and later it grew warmer", "which surprised nobody", "until everything was dark",
    ),
)  # fmt: skip


class Chapter(NamedTuple):
    """What happens. An item of None says that nothing is bought."""

    place: str
    person: str
    item: str | None


class Story(NamedTuple):
    """Its chapters, in their order."""

    traveller: str
    chapters: tuple[Chapter, ...]


def length(tokens: int) -> int:
    """How many chapters a story of so many tokens has."""
    return min(CHAPTERS, max(_FEWEST, tokens // _PER_CHAPTER))


def invent(draw: random.Random, chapters: int, nothing: Sequence[str] = ()) -> Story:
    """A story.

    Args:
        draw: decides everything.
        chapters: how many, at most as many as there are places.
        nothing: places of :data:`PLACES` that are visited, and where nothing is bought.
    """
    places = [*nothing, *draw.sample([place for place in PLACES if place not in nothing], chapters - len(nothing))]
    draw.shuffle(places)
    persons, items = draw.sample(PERSONS, chapters), draw.sample(ITEMS, chapters)
    told = [
        Chapter(place, person, None if place in nothing else item)
        for place, person, item in zip(places, persons, items, strict=True)
    ]
    return Story(draw.choice(TRAVELLERS), tuple(told))


def write(tokenizer: Any, story: Story, draw: random.Random, tokens: int) -> list[int]:
    """The story in exactly so many tokens: every chapter gets its share of filler, whose last sentence is cut.

    Args:
        tokenizer: the tokenizer of Transformers.
        story: what happens.
        draw: the filler.
        tokens: how many.

    Raises:
        ValueError: what happens takes more.
    """
    before = encode(tokenizer, _BEFORE.format(traveller=story.traveller))
    chapters = [
        [encode(tokenizer, sentence) for sentence in _sentences(story.traveller, number, chapter)]
        for number, chapter in enumerate(story.chapters, start=1)
    ]
    room = tokens - len(before) - sum(len(sentence) for chapter in chapters for sentence in chapter)
    if room < 0:
        raise ValueError(
            f"story: tokens must suffice for {len(chapters)} chapters, which take {tokens - room} with what stands "
            f"before them: got {tokens}; pass more tokens"
        )
    ids = before
    for number, chapter in enumerate(chapters):
        share = room // len(chapters) + (number < room % len(chapters))
        ids += _with_filler(tokenizer, chapter, draw, share)
    return ids


def _sentences(traveller: str, number: int, chapter: Chapter) -> list[str]:
    place = chapter.place
    told = [
        f"{_HEADING.format(number=number, place=place)}{traveller} travelled to {place}.",
        f" The person whom {traveller} met in {place} was {chapter.person}.",
    ]
    if chapter.item is None:
        return told
    return [*told, f" The thing that {traveller} bought in {place} was a {chapter.item}."]


def _with_filler(tokenizer: Any, sentences: list[list[int]], draw: random.Random, tokens: int) -> list[int]:
    """A chapter with filler behind each of its sentences, as much behind one as behind another."""
    filler: list[list[int]] = []
    while tokens > 0:
        filler.append(encode(tokenizer, f" {' '.join(map(draw.choice, _FILLER))}.")[:tokens])
        tokens -= len(filler[-1])
    ids: list[int] = []
    for number, sentence in enumerate(sentences):
        start, stop = (len(filler) * part // len(sentences) for part in (number, number + 1))
        ids += sentence + [token for each in filler[start:stop] for token in each]
    return ids
