"""Common words: a long numbered list in which ten words come ten times as often as the others; which are they?

No single place holds the answer: it is in how often words return, so a method that keeps few keys a query may still
find it, and one that forgets the far past need not.

Source: RULER, arXiv:2404.06654, section 3 (common word extraction: 10 words 30 times, the others 3 times; below 4096
tokens 6 times and once; an example first). There the answer's order is drawn; here words come as they first appear in
the list.
"""

from __future__ import annotations

import math
import random
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, final

import torch

from dynattn.lab.tasks.recall import Item, Recall, encode, vocabulary
from dynattn.lab.tasks.texts import Text

BEFORE = (
    "Below is a numbered list of words. In these words, some appear more often than others. Memorize the ones that "
    "appear most often.\n"
)
QUESTION = (
    "\nQuestion: What are the 10 most common words in the above list? Answer: The top 10 words that appear most often "
    "in the list are:"
)
COMMON = 10


class Rule(NamedTuple):
    """How often common and other words come, in the list and in the example, and how many others the example has."""

    common: int
    other: int
    example_common: int
    example_other: int
    example_others: int


_SHORT, _LONG = Rule(6, 1, 3, 1, 10), Rule(30, 3, 10, 3, 30)
_LONG_FROM = 4096  # tokens


@final
@dataclass(frozen=True)
class CommonWords(Recall):
    """The ten most common words. Contexts are as long as whole words allow, at most ``tokens``."""

    name: ClassVar[str] = "common-words"

    def asked(self) -> str:
        return f"{COMMON} words that come often in it"

    def build(self, tokenizer: Any, texts: Sequence[Text], index: int, draw: random.Random) -> Item:
        rule = rule_of(self.tokens)
        words = list(vocabulary(tuple(texts)))
        draw.shuffle(words)
        shown, words = words[: COMMON + rule.example_others], words[COMMON + rule.example_others :]
        before = encode(tokenizer, opening(draw, shown, rule))
        question, seed = encode(tokenizer, QUESTION), draw.random()

        def built(others: int) -> tuple[list[int], int]:
            listing = listed(random.Random(seed), words[: COMMON + others], rule.common, rule.other)
            answer = encode(tokenizer, listing.answer)
            return before + encode(tokenizer, listing.text) + question + answer, len(answer)

        most = len(words) - COMMON
        others = bisect_right(range(most + 1), self.tokens, key=lambda n: len(built(n)[0])) - 1 if most > 0 else -1
        if others < 1:
            raise ValueError(
                f"common-words: tokens and texts must suffice for {COMMON} common words and others: got {self.tokens} "
                f"tokens, {len(words)} words; pass more tokens, or texts of more different words"
            )
        ids, answer = built(others)
        guess = math.log(math.perm(COMMON + others, COMMON))  # words of the list, whatever their number
        return Item(f"{index + 1}: {', '.join(words[:COMMON])}", torch.tensor([ids], device="cpu"), answer, guess)


class Listing(NamedTuple):
    """A numbered list of words, and its common ones, numbered as they first appear."""

    text: str
    answer: str


def rule_of(tokens: int) -> Rule:
    """RULER's, by the length of the context."""
    return _LONG if tokens >= _LONG_FROM else _SHORT


def opening(draw: random.Random, words: Sequence[str], rule: Rule) -> str:
    """What stands before a list: an example with its answer, and the instruction.

    Args:
        draw: shuffles the example.
        words: of the example, its common ones first.
        rule: how often they come.
    """
    example = listed(draw, words, rule.example_common, rule.example_other)
    return f"{BEFORE}{example.text}{QUESTION}{example.answer}\n{BEFORE}"


def listed(draw: random.Random, words: Sequence[str], common: int, other: int) -> Listing:
    """The first ten words ``common`` times and the rest ``other`` times, shuffled and numbered; and the answer."""
    entries = [*words[:COMMON]] * common + [*words[COMMON:]] * other
    draw.shuffle(entries)
    answer = sorted(words[:COMMON], key=entries.index)
    return Listing(_numbered(entries), " " + _numbered(answer))


def _numbered(words: Sequence[str]) -> str:
    return " ".join(f"{number}. {word}" for number, word in enumerate(words, start=1))
