"""Counts of words: which come most often in a long text that consists of nothing else?

    common words       ten words come 30 times, all others 3 times, in a numbered list; an example comes first
    frequent words     the word of rank r comes as often as 1/r² tells; the first is noise, the next three are asked for

No single place holds the answer: it is in how often words return.

Source: RULER, arXiv:2404.06654 (common words: below 4096 tokens 6 times and once; frequent words: coded words of six
letters, one for 50 tokens, ``...`` the most frequent). There answers are written. Prompts are exactly as long as asked
for: what is too little for another word is filled at the beginning, in the list with the beginning of a text, and among
coded words with dots, which are noise.
"""

from __future__ import annotations

import random
import string
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, final

from dynattn.lab.tasks.choosing import Asked, Choosing, InTexts, Question, apart, ask, asked, width
from dynattn.lab.tasks.common_words import COMMON, QUESTION, listed, opening, rule_of
from dynattn.lab.tasks.recall import encode, fresh, vocabulary

_LIST = f"{QUESTION} 1."
_NOISE = "..."
_LETTERS, _PER_WORD, _FREQUENT = 6, 50, 3
_READ = (
    "Read the following coded text and track the frequency of each coded word. Find the three most frequently appeared "
    "coded words."
)
_WHICH = (
    "\nQuestion: Do not provide any explanation. Please ignore the dots '....'. What are the three most frequently "
    "appeared words in the above coded text? Answer: According to the coded text above, the three most frequently "
    "appeared words are:"
)


@final
@dataclass(frozen=True)
class CommonWordsChosen(InTexts):
    """The ten most common words of a list, among words of the list."""

    name: ClassVar[str] = "ruler-common-words"

    def told(self) -> str:
        return f"a list in which {COMMON} words come often"

    def build(self, tokenizer: Any, index: int, draw: random.Random) -> Asked:
        source, rule = self.source(), rule_of(self.tokens)
        words = list(vocabulary(source))
        draw.shuffle(words)
        shown, words = words[: COMMON + rule.example_others], words[COMMON + rule.example_others :]
        right = apart(tokenizer, words, COMMON)
        others = [word for word in words if word not in right]
        before, seed = encode(tokenizer, opening(draw, shown, rule)), draw.random()

        def body(count: int) -> list[int]:
            listing = listed(random.Random(seed), right + others[:count], rule.common, rule.other)
            return before + encode(tokenizer, listing.text)

        room = self.tokens - width(ask(tokenizer, [Question(_LIST, right, others)]))
        count = _most(body, len(others), room, self)
        slots = ask(tokenizer, [Question(_LIST, right, others[:count])])
        filler = encode(tokenizer, source[index % len(source)].body[: 20 * self.tokens])
        return asked(f"{index + 1}: {', '.join(right)}", _filled([], filler, body(count), room), slots)


@final
@dataclass(frozen=True)
class FrequentWords(Choosing):
    """The three most frequent coded words, among coded words of the text.

    Args:
        alpha: a word of rank r comes as often as 1 over r to the power of alpha tells.
    """

    alpha: float = 2.0

    name: ClassVar[str] = "ruler-frequent-words"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.alpha <= 1:
            raise ValueError(f"ruler-frequent-words: alpha must be above 1: got {self.alpha}; the source has 2.0")

    def told(self) -> str:
        return f"coded words, of which the {_FREQUENT} that come most often are asked for"

    def build(self, tokenizer: Any, index: int, draw: random.Random) -> Asked:
        size = max(4 * _FREQUENT, self.tokens // _PER_WORD)
        words = fresh(lambda: "".join(draw.choices(string.ascii_lowercase, k=_LETTERS)), "", size)
        right = apart(tokenizer, words, _FREQUENT)
        ranked = [_NOISE, *right, *(word for word in words if word not in right)]
        coded = {word: encode(tokenizer, f" {word}") for word in ranked}
        before, seed = encode(tokenizer, _READ), draw.random()

        def body(count: int) -> list[int]:
            entries = [word for word, times in self.counts(ranked, count).items() for _ in range(times)]
            random.Random(seed).shuffle(entries)
            return [token for word in entries for token in coded[word]]

        room = self.tokens - width(ask(tokenizer, [Question(_WHICH, right, ranked[1 + _FREQUENT :])]))
        count = _most(body, room, room - len(before), self)
        there = [word for word, times in self.counts(ranked, count).items() if times]
        slots = ask(tokenizer, [Question(_WHICH, right, there[1 + _FREQUENT :])])
        noise = encode(tokenizer, f" {_NOISE}" * room)
        return asked(f"{index + 1}: {', '.join(right)}", _filled(before, noise, body(count), room), slots)

    def counts(self, ranked: Sequence[str], count: int) -> dict[str, int]:
        """How often each word comes among about ``count`` words, the most frequent first."""
        weights = [rank**-self.alpha for rank in range(1, len(ranked) + 1)]
        return {word: int(count * weight / sum(weights)) for word, weight in zip(ranked, weights, strict=True)}


def _most(body: Callable[[int], list[int]], most: int, room: int, task: Choosing) -> int:
    """The largest count with which a body fits into the room."""
    count = bisect_right(range(most + 1), room, key=lambda n: len(body(n))) - 1
    if count < 1:
        raise ValueError(
            f"{task.name}: tokens and texts must suffice for the words and the question: got {task.tokens} tokens; "
            "pass more tokens, or texts of more different words"
        )
    return count


def _filled(before: list[int], filler: list[int], body: list[int], room: int) -> list[int]:
    """As many tokens as there is room for, the missing ones in front of the body."""
    missing = room - len(before) - len(body)
    if missing > len(filler):
        raise ValueError(
            f"fill: texts must give {missing} tokens to fill a prompt with: got {len(filler)}; pass longer texts, or "
            "texts of more different words"
        )
    return before + filler[:missing] + body
