"""Three tasks about one story: to retrieve, to go from one chapter to another, and to filter all chapters.

    retrieval    who was met, where, or what was bought: 16 questions about single chapters
    multi-hop    which item was bought right before another one
    filtering    in which 3 places nothing was bought

The first asks for facts that stand in one place each, the second for two at a time, the third for what stands nowhere:
each more scattered, or more of the story at once.

Source: The Sparse Frontier, arXiv:2504.17768; there one question is asked in the second task, and answers are written.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any, ClassVar, final

from dynattn.lab.tasks.choosing import Asked, Choosing, Question, apart, ask, asked, width
from dynattn.lab.tasks.story import PLACES, Story, invent, length, write

_START = "\n\nQuestion: "
_ASKED, _HOPS, _NOTHING = 16, 4, 3


@dataclass(frozen=True)
class _OfStory(Choosing):
    """What the three share."""

    def written(
        self, tokenizer: Any, index: int, draw: random.Random, story: Story, questions: list[Question]
    ) -> Asked:
        """The story, and the questions behind it."""
        slots = ask(tokenizer, questions)
        return asked(f"story {index + 1}", write(tokenizer, story, draw, self.tokens - width(slots)), slots)


@final
@dataclass(frozen=True)
class StoryRetrieval(_OfStory):
    """Who, where and what, of single chapters."""

    name: ClassVar[str] = "story-retrieval"

    def told(self) -> str:
        return f"a story of {length(self.tokens)} chapters and {_ASKED} questions about single ones"

    def build(self, tokenizer: Any, index: int, draw: random.Random) -> Asked:
        story = invent(draw, length(self.tokens))
        kinds = [(kind, number) for kind in ("who", "where", "what") for number in range(len(story.chapters))]
        questions = [_about(story, kind, number, draw) for kind, number in draw.sample(kinds, _ASKED)]
        return self.written(tokenizer, index, draw, story, questions)


@final
@dataclass(frozen=True)
class StoryMultiHop(_OfStory):
    """What was bought right before."""

    name: ClassVar[str] = "story-multi-hop"

    def told(self) -> str:
        return f"a story of {length(self.tokens)} chapters and {_HOPS} questions about what was bought right before"

    def build(self, tokenizer: Any, index: int, draw: random.Random) -> Asked:
        story = invent(draw, length(self.tokens))
        who, items = story.traveller, [str(chapter.item) for chapter in story.chapters]
        questions = []
        for number in sorted(draw.sample(range(1, len(items)), _HOPS)):
            near = [items[number], *items[number + 1 : number + 2]]  # the item itself, and the one after it
            far = [item for item in items if item not in (*near, items[number - 1])]
            before = f"right before the {items[number]}"
            text = f"Which thing did {who} buy {before}? The thing that {who} bought {before} was a"
            questions.append(Question(f"{_START}{text}", [items[number - 1]], near + draw.sample(far, len(far))))
        return self.written(tokenizer, index, draw, story, questions)


@final
@dataclass(frozen=True)
class StoryFiltering(_OfStory):
    """Where nothing was bought."""

    name: ClassVar[str] = "story-filtering"

    def told(self) -> str:
        return f"a story of {length(self.tokens)} chapters, in {_NOTHING} of which nothing is bought"

    def build(self, tokenizer: Any, index: int, draw: random.Random) -> Asked:
        nothing = apart(tokenizer, draw.sample(PLACES, len(PLACES)), _NOTHING)
        story = invent(draw, length(self.tokens), nothing)
        others = [chapter.place for chapter in story.chapters if chapter.item is not None]
        who = story.traveller
        text = f"In which {_NOTHING} places did {who} buy nothing? {who} bought nothing in"
        question = Question(f"{_START}{text}", nothing, draw.sample(others, len(others)))
        return self.written(tokenizer, index, draw, story, [question])


def _about(story: Story, kind: str, number: int, draw: random.Random) -> Question:
    """One question about a chapter; the answers of the other chapters are wrong."""
    who, chapter = story.traveller, story.chapters[number]
    place = chapter.place
    text, field = {
        "who": (f"Whom did {who} meet in {place}? The person whom {who} met in {place} was", "person"),
        "where": (f"Where was {who} in chapter {number + 1}? Chapter {number + 1}:", "place"),
        "what": (f"What did {who} buy in {place}? The thing that {who} bought in {place} was a", "item"),
    }[kind]
    wrong = [getattr(other, field) for other in story.chapters if other is not chapter]
    return Question(f"{_START}{text}", [getattr(chapter, field)], draw.sample(wrong, len(wrong)))
