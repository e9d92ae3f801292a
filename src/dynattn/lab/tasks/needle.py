"""Needles in a haystack: one number hidden in a long text, or several, each under a name of its own.

    One of the special magic numbers for <name> is: <number>.

The single needle is found by whatever still sees it. Several that differ by name alone have to be told apart, too,
which asks more of the scores of attention; the answer gives all numbers in the order of the question.

Source: RULER, arXiv:2404.06654, section 3 (single and multi-query NIAH, words as keys, seven digits as values).
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, final

from dynattn.lab.tasks.recall import Item, Puzzle, Recall, excerpt, fresh, hide, spread, vocabulary
from dynattn.lab.tasks.texts import Text

_STATEMENT = "One of the special magic numbers for {name} is: {number}."
_ONE = (
    "A special magic number is hidden within the following text. Make sure to memorize it. I will quiz you about the "
    "number afterwards.\n",
    "\nWhat is the special magic number for {names} mentioned in the provided text? The special magic number for "
    "{names} mentioned in the provided text is",
)
_MANY = (
    "Some special magic numbers are hidden within the following text. Make sure to memorize them. I will quiz you "
    "about the numbers afterwards.\n",
    "\nWhat are all the special magic numbers for {names} mentioned in the provided text? The special magic numbers "
    "for {names} mentioned in the provided text are",
)
_DIGITS = 7
_GUESS = math.log(9 * 10 ** (_DIGITS - 1))  # of one number


@final
@dataclass(frozen=True)
class Needle(Recall):
    """One number; the items' depths are spread evenly from 10% to 90% of the text."""

    name: ClassVar[str] = "needle"

    def asked(self) -> str:
        return "one number hidden in it and asked for"

    def build(self, tokenizer: Any, texts: Sequence[Text], index: int, draw: random.Random) -> Item:
        depth = 0.1 + 0.8 * index / (self.items - 1) if self.items > 1 else 0.5
        text = excerpt(texts, index, self.tokens)
        puzzle = _needles(draw, texts, " ".join(text), (depth,))
        return Item(f"depth {depth:.0%}", *hide(tokenizer, puzzle, text, self.tokens), _GUESS)


@final
@dataclass(frozen=True)
class MultiNeedle(Recall):
    """Several numbers, all asked for; one stands in each part of the text.

    Args:
        needles: how many.
    """

    needles: int = 4

    name: ClassVar[str] = "multi-needle"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.needles < 2:
            raise ValueError(f"multi-needle: needles must be at least 2: got {self.needles}; one is the task needle")

    def asked(self) -> str:
        return f"{self.needles} numbers hidden in it and asked for"

    def build(self, tokenizer: Any, texts: Sequence[Text], index: int, draw: random.Random) -> Item:
        depths = spread(draw, self.needles)
        text = excerpt(texts, index, self.tokens)
        puzzle = _needles(draw, texts, " ".join(text), depths)
        label = f"{index + 1}: depths {', '.join(f'{depth:.0%}' for depth in depths)}"
        return Item(label, *hide(tokenizer, puzzle, text, self.tokens), self.needles * _GUESS)


def _needles(draw: random.Random, texts: Sequence[Text], text: str, depths: tuple[float, ...]) -> Puzzle:
    """A number at each depth. Neither names nor numbers stand in ``text``."""
    words = vocabulary(tuple(texts))
    count = len(depths)
    names = fresh(lambda: f"{draw.choice(words)}-{draw.choice(words)}", text, count)
    numbers = fresh(lambda: str(draw.randrange(10 ** (_DIGITS - 1), 10**_DIGITS)), text, count)
    before, question = _ONE if count == 1 else _MANY
    order = draw.sample(range(count), count)  # asked for in another order than they stand in
    asked = [names[i] for i in order]
    return Puzzle(
        before=before,
        hidden=tuple(_STATEMENT.format(name=n, number=v) for n, v in zip(names, numbers, strict=True)),
        depths=depths,
        question=question.format(names=", and ".join(filter(None, [", ".join(asked[:-1]), asked[-1]]))),
        answer=" " + " ".join(numbers[i] for i in order),
    )
