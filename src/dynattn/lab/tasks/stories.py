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

from dynattn.lab.tasks.choosing import Asked, Choosing, Question, apart, ask, asked
from dynattn.lab.tasks.story import PLACES, Story, invent, length, write

_START = "\n\nQuestions about the story:"
_ASKED, _HOPS, _NOTHING = 16, 4, 3


@dataclass(frozen=True)
class _OfStory(Choosing):
    """What the three share."""

    def written(
        self, tokenizer: Any, index: int, draw: random.Random, story: Story, questions: list[Question]
    ) -> Asked:
        """The story, and the questions behind it."""
        tail, slots = ask(tokenizer, questions, _START)
        return asked(f"story {index + 1}", write(tokenizer, story, draw, self.tokens - len(tail)), tail, slots)


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
            text = (
                f"\nWhich item did {who} buy right before the {items[number]}? Right before the {items[number]}, "
                f"{who} bought a"
            )
            questions.append(Question(text, [items[number - 1]], near + draw.sample(far, len(far))))
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
        text = f"\nIn which {_NOTHING} places did {story.traveller} buy nothing? {story.traveller} bought nothing in"
        question = Question(text, nothing, draw.sample(others, len(others)))
        return self.written(tokenizer, index, draw, story, [question])


def _about(story: Story, kind: str, number: int, draw: random.Random) -> Question:
    """One question about a chapter; the answers of the other chapters are wrong."""
    who, chapter = story.traveller, story.chapters[number]
    text, field = {
        "who": (f"\nWhom did {who} meet in {chapter.place}? In {chapter.place} {who} met", "person"),
        "where": (f"\nWhere did {who} meet {chapter.person}? {who} met {chapter.person} in", "place"),
        "what": (f"\nWhat did {who} buy in {chapter.place}? In {chapter.place} {who} bought a", "item"),
    }[kind]
    wrong = [getattr(other, field) for other in story.chapters if other is not chapter]
    return Question(text, [getattr(chapter, field)], draw.sample(wrong, len(wrong)))
