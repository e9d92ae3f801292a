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

_BEFORE = (
    "Below is a numbered list of words. In these words, some appear more often than others. Memorize the ones that "
    "appear most often.\n"
)
_QUESTION = (
    "\nQuestion: What are the 10 most common words in the above list? Answer: The top 10 words that appear most often "
    "in the list are:"
)
_COMMON = 10


class _Rule(NamedTuple):
    """How often common and other words come, in the list and in the example, and how many others the example has."""

    common: int
    other: int
    example_common: int
    example_other: int
    example_others: int


_SHORT, _LONG = _Rule(6, 1, 3, 1, 10), _Rule(30, 3, 10, 3, 30)
_LONG_FROM = 4096  # tokens


@final
@dataclass(frozen=True)
class CommonWords(Recall):
    """The ten most common words. Contexts are as long as whole words allow, at most ``tokens``."""

    name: ClassVar[str] = "common-words"

    def asked(self) -> str:
        return f"{_COMMON} words that come often in it"

    def build(self, tokenizer: Any, texts: Sequence[Text], index: int, draw: random.Random) -> Item:
        rule = _LONG if self.tokens >= _LONG_FROM else _SHORT
        words = list(vocabulary(tuple(texts)))
        draw.shuffle(words)
        shown, words = words[: _COMMON + rule.example_others], words[_COMMON + rule.example_others :]
        example = _listing(draw, shown, rule.example_common, rule.example_other)
        before = encode(tokenizer, f"{_BEFORE}{example.text}{_QUESTION}{example.answer}\n{_BEFORE}")
        question, seed = encode(tokenizer, _QUESTION), draw.random()

        def built(others: int) -> tuple[list[int], int]:
            listing = _listing(random.Random(seed), words[: _COMMON + others], rule.common, rule.other)
            answer = encode(tokenizer, listing.answer)
            return before + encode(tokenizer, listing.text) + question + answer, len(answer)

        most = len(words) - _COMMON
        others = bisect_right(range(most + 1), self.tokens, key=lambda n: len(built(n)[0])) - 1 if most > 0 else -1
        if others < 1:
            raise ValueError(
                f"common-words: tokens and texts must suffice for {_COMMON} common words and others: got {self.tokens} "
                f"tokens, {len(words)} words; pass more tokens, or texts of more different words"
            )
        ids, answer = built(others)
        guess = math.log(math.perm(_COMMON + others, _COMMON))  # words of the list, whatever their number
        return Item(f"{index + 1}: {', '.join(words[:_COMMON])}", torch.tensor([ids], device="cpu"), answer, guess)


class _Listing(NamedTuple):
    text: str
    answer: str


def _listing(draw: random.Random, words: Sequence[str], common: int, other: int) -> _Listing:
    """The first ten words ``common`` times and the rest ``other`` times, shuffled and numbered; and the answer."""
    entries = [*words[:_COMMON]] * common + [*words[_COMMON:]] * other
    draw.shuffle(entries)
    answer = sorted(words[:_COMMON], key=entries.index)
    return _Listing(_numbered(entries), " " + _numbered(answer))


def _numbered(words: Sequence[str]) -> str:
    return " ".join(f"{number}. {word}" for number, word in enumerate(words, start=1))
