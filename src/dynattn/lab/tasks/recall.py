"""Tasks whose answer stands in a long context: puzzles made by rule, hidden in text of any length.

What a question asks is drawn by a rule and stands in the context once; the model is given the answer token by token
(teacher forcing), and the score is its negative log-likelihood. Hits, the share that greedy decoding would get right,
are there as well, but they saturate at both ends where likelihoods still differ.

Source of the tasks: RULER, arXiv:2404.06654. What differs from it, in all four: contexts are real articles where RULER
has essays or repeated noise, words come from those articles, and the filler ends where the length in tokens is full.
"""

from __future__ import annotations

import random
import re
from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from dynattn.lab.models import Kind, Pretrained
from dynattn.lab.tasks.base import Outcome, Prepared, Task
from dynattn.lab.tasks.perplexity import prefill
from dynattn.lab.tasks.texts import Text, sentences, wikipedia

_CHARACTERS_PER_TOKEN = 20  # more than any tokenizer's, on average
_WORD = re.compile(r"\b[a-z]{4,9}\b")


class Item(NamedTuple):
    """A context with its question and answer.

    Attributes:
        label: what tells it from the others.
        ids: token ids, (1, length); the answer stands at the end.
        answer: how many tokens it has.
        guess: nats of the answer to who knows what such answers look like, and not this one: the logarithm of how many
            there may be.
    """

    label: str
    ids: Tensor
    answer: int
    guess: float


class Puzzle(NamedTuple):
    """What is hidden in a text, and asked for.

    Attributes:
        before: stands before the text.
        hidden: statements, in the order in which they stand in the text.
        depths: share of the text before each of them, ascending.
        question: stands behind the text, up to the answer; empty where others ask.
        answer: begins with a blank; empty where others ask.
    """

    before: str
    hidden: tuple[str, ...]
    depths: tuple[float, ...]
    question: str = ""
    answer: str = ""


@dataclass(frozen=True)
class Recall(Task):
    """NLL of the answer, per token; an item is a context with its question.

    Args:
        items: contexts.
        tokens: the largest number of tokens of a context with question and answer.
        texts: what contexts are filled with; None for Wikipedia articles.
        seed: draws the puzzles.

    Raises:
        ValueError: a size is not positive.
    """

    items: int = 8
    tokens: int = 2048
    texts: tuple[Text, ...] | None = None
    seed: int = 0

    kinds: ClassVar[tuple[Kind, ...]] = ("decoder",)
    metric: ClassVar[str] = "NLL of the answer, nats per token"
    higher_is_better: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.items < 1 or self.tokens < 1:
            raise ValueError(f"{self.name}: items and tokens must be at least 1: got {self.items}, {self.tokens}")

    def prepare(self, pretrained: Pretrained) -> Prepared:
        texts = wikipedia() if self.texts is None else self.texts
        draw = random.Random(self.seed)
        built = [self.build(pretrained.processor, texts, index, draw) for index in range(self.items)]
        length = max(item.ids.shape[1] for item in built)
        return Prepared(
            labels=tuple(item.label for item in built),
            steps=len(built),
            examples=tuple(prefill(item.ids) for item in built[:2]),
            length=length,
            summary=f"{len(built)} contexts of {length} tokens, each with {self.asked()}",
            payload=[(item.ids, item.answer) for item in built],
            chance=float(np.mean([item.guess / item.answer for item in built])),
        )

    def words(self, data: Prepared) -> Sequence[str]:
        texts = wikipedia() if self.texts is None else self.texts
        return [text.body for text in texts[: self.items]]

    def evaluate(self, pretrained: Pretrained, data: Prepared, advance: Callable[[], None]) -> Outcome:
        return score(pretrained, data.payload, advance)

    @abstractmethod
    def asked(self) -> str:
        """What a context holds and asks for, in words."""

    @abstractmethod
    def build(self, tokenizer: Any, texts: Sequence[Text], index: int, draw: random.Random) -> Item:
        """One item.

        Args:
            tokenizer: the tokenizer of Transformers.
            texts: what to fill the context with.
            index: the index of the item, from 0.
            draw: decides everything that is not decided by the index.

        Raises:
            ValueError: ``tokens`` or the texts do not suffice.
        """


@torch.inference_mode()
def score(pretrained: Pretrained, items: Iterable[tuple[Tensor, int]], advance: Callable[[], None]) -> Outcome:
    """Mean NLL of each answer, and whether greedy decoding would give the whole of it.

    Args:
        pretrained: a decoder.
        items: token ids (1, length), and how many of them, at the end, are the answer.
        advance: called after each.
    """
    losses, hits = [], []
    for ids, answer in items:
        ids = ids.to(pretrained.model.device)
        logits = pretrained.model(input_ids=ids, use_cache=False, logits_to_keep=answer + 1).logits[0, :-1].float()
        losses.append(nn.functional.cross_entropy(logits, ids[0, -answer:]).item())
        hits.append(bool((logits.argmax(-1) == ids[0, -answer:]).all()))
        advance()
    return Outcome(np.array(losses), None, np.array(hits, float))


def spread(draw: random.Random, count: int, low: float = 0.05, high: float = 0.95) -> tuple[float, ...]:
    """Depths drawn at random, one from each of ``count`` equal parts of the text between ``low`` and ``high``."""
    return tuple(low + (high - low) * (part + draw.random()) / count for part in range(count))


def fresh(draw: Callable[[], str], taken: str, count: int) -> list[str]:
    """So many different draws, none of which stands anywhere in the text ``taken``.

    Raises:
        ValueError: they cannot be found in a thousand draws each.
    """
    found: list[str] = []
    for _ in range(1000 * count):
        if len(found) == count:
            break
        drawn = draw()
        if drawn not in taken and drawn not in found:
            found.append(drawn)
    if len(found) < count:
        raise ValueError(f"fresh: {count} words that a text lacks must be found: got {found}; pass other texts")
    return found


@lru_cache(maxsize=8)
def vocabulary(texts: tuple[Text, ...], size: int = 4000) -> tuple[str, ...]:
    """The most frequent words of 4 to 9 small letters in the texts, most frequent first, ties by the alphabet."""
    counts = Counter(word for text in texts for word in _WORD.findall(text.body))
    return tuple(sorted(counts, key=lambda word: (-counts[word], word))[:size])


def excerpt(texts: Sequence[Text], first: int, tokens: int) -> list[str]:
    """Sentences of text ``first``, then of the next and so on, more than enough for so many tokens."""
    found, room = [], tokens * _CHARACTERS_PER_TOKEN
    for step in range(len(texts)):
        for sentence in sentences(texts[(first + step) % len(texts)].body):
            if room <= 0:
                return found
            found.append(sentence)
            room -= len(sentence)
    return found


def hide(tokenizer: Any, puzzle: Puzzle, text: Iterable[str], tokens: int) -> tuple[Tensor, int]:
    """Hide a puzzle's statements between the sentences of a text, and ask for them at its end.

    Args:
        tokenizer: the tokenizer of Transformers.
        puzzle: what to hide.
        text: sentences, more than needed; the last that is used is cut.
        tokens: the exact number of tokens of the whole.

    Returns:
        Token ids, (1, tokens), and how many of them, at the end, are the answer.

    Raises:
        ValueError: the puzzle alone is longer, or the text too short.
    """
    question, answer = encode(tokenizer, puzzle.question), encode(tokenizer, puzzle.answer)
    ids = bury(tokenizer, puzzle, text, tokens, len(question) + len(answer)) + question + answer
    return torch.tensor([ids], device="cpu"), len(answer)


def bury(tokenizer: Any, puzzle: Puzzle, text: Iterable[str], tokens: int, asked: int) -> list[int]:
    """Hide a puzzle's statements between the sentences of a text, each where its depth is nearest.

    Args:
        tokenizer, puzzle, text, tokens: as :func:`hide`; question and answer are left out.
        asked: the number of tokens that are left for them at the end.

    Returns:
        Token ids, ``tokens - asked`` of them.

    Raises:
        ValueError: as :func:`hide`.
    """
    before = encode(tokenizer, puzzle.before)
    hidden = [encode(tokenizer, " " + statement) for statement in puzzle.hidden]
    room = tokens - asked - sum(map(len, (before, *hidden)))
    if room < 1:
        raise ValueError(
            f"hide: tokens must leave room for what is hidden and asked, {tokens - room} tokens: got {tokens}; pass "
            "more tokens"
        )
    hay: list[list[int]] = []
    for sentence in text:
        if room == 0:
            break
        hay.append(encode(tokenizer, " " + sentence)[:room])
        room -= len(hay[-1])
    if room > 0:
        raise ValueError(f"hide: texts must fill {tokens} tokens: they lack {room}; pass longer texts or fewer tokens")
    ends = [0, *accumulate(map(len, hay))][:-1]  # not behind the last sentence, since that is cut
    nearest = [min(range(len(ends)), key=lambda i: abs(ends[i] - depth * ends[-1])) for depth in puzzle.depths]
    out = list(before)
    for index, sentence in enumerate(hay):
        for place, statement in zip(nearest, hidden, strict=True):
            if place == index:
                out += statement
        out += sentence
    return out


def encode(tokenizer: Any, text: str) -> list[int]:
    """Token ids without the tokens that mark begin or end."""
    return tokenizer(text, add_special_tokens=False)["input_ids"]
