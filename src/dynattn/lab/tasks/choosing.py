"""Tasks whose answers are chosen: of several candidates, the model finds those that it holds to be the likeliest.

A text is read once, and then every question by itself, which ends where its answer would begin. There candidates are
ranked by the probability of their next token.

    score of a question = share of the right answers among the k likeliest candidates, of k right ones
    score of an item    = mean over the questions about its text, from 0 to 1

Small models do not keep to a format when they write freely, and what they write would have to be read by rules. To
rank candidates asks for the same knowledge, and it is known what guessing gives. No question sees another one, and none
sees an answer: a method that chooses by the last queries would use it.

Candidates differ in the first token that they do not all begin with, so that one token tells them apart.

Source: the tasks of The Sparse Frontier, arXiv:2504.17768, which lets larger models write their answers.
"""

from __future__ import annotations

import math
import random
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import takewhile
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

from dynattn.lab.models import Kind, Pretrained
from dynattn.lab.tasks.base import Outcome, Prepared, Task
from dynattn.lab.tasks.perplexity import prefill
from dynattn.lab.tasks.recall import encode
from dynattn.lab.tasks.texts import Text, wikipedia

_CANDIDATES = 4  # for each right answer, so that guessing finds a quarter


class Question(NamedTuple):
    """What is asked.

    Attributes:
        text: ends where the answer would begin, without the blank.
        right: the right answers.
        wrong: other candidates, the most tempting first.
    """

    text: str
    right: Sequence[str]
    wrong: Sequence[str]


class Slot(NamedTuple):
    """A question in tokens, up to where its answer would begin.

    Attributes:
        ids: token ids, (1, length).
        right: the tokens of the right answers.
        wrong: the tokens of the other candidates.
    """

    ids: Tensor
    right: tuple[int, ...]
    wrong: tuple[int, ...]

    @property
    def chance(self) -> float:
        """What guessing gives."""
        return len(self.right) / (len(self.right) + len(self.wrong))

    def score(self, logits: Tensor) -> float:
        """The share of the right answers among the likeliest candidates. A tie counts against them.

        Args:
            logits: (vocabulary,), at the end of the question.

        Returns:
            From 0 to 1; NaN where a candidate's logit is.
        """
        values = logits[[*self.right, *self.wrong]].float()
        if values.isnan().any():
            return math.nan
        right = values[: len(self.right)]
        ranks = (values >= right.unsqueeze(1)).sum(1)  # the likeliest has rank 1
        return (ranks <= len(right)).float().mean().item()


class Asked(NamedTuple):
    """A text with its questions.

    Attributes:
        label: what tells it from the others.
        ids: token ids of the text, (1, length).
        slots: the questions, all equally long.
    """

    label: str
    ids: Tensor
    slots: tuple[Slot, ...]

    @property
    def prompt(self) -> Tensor:
        """The text with its first question."""
        return torch.cat([self.ids, self.slots[0].ids], 1)

    def score(self, tell: Callable[[Tensor], Tensor]) -> float:
        """The mean over the questions.

        Args:
            tell: gives the logits at the end of a question, which is read after the text.
        """
        return float(np.mean([slot.score(tell(slot.ids)) for slot in self.slots]))


@dataclass(frozen=True)
class Choosing(Task):
    """Share of the right answers among the likeliest candidates; an item is a text with its questions.

    Args:
        items: texts.
        tokens: the exact number of tokens of a text with one of its questions.
        seed: draws the texts; each has its own draws, so that more items leave those that there are as they are.

    Raises:
        ValueError: a size is not positive.
    """

    items: int = 16
    tokens: int = 2048
    seed: int = 43

    kinds: ClassVar[tuple[Kind, ...]] = ("decoder",)
    metric: ClassVar[str] = "share of the right answers among the likeliest candidates"
    higher_is_better: ClassVar[bool] = True
    least: ClassVar[float | None] = 0.5

    def __post_init__(self) -> None:
        if self.items < 1 or self.tokens < 1:
            raise ValueError(
                f"{self.name}: items and tokens must be at least 1: got {self.items}, {self.tokens}; leave them out "
                "for the defaults"
            )

    def prepare(self, pretrained: Pretrained) -> Prepared:
        draws = (random.Random(f"{self.name} {self.seed} {index}") for index in range(self.items))
        built = [self.build(pretrained.processor, index, draw) for index, draw in enumerate(draws)]
        slots = [slot for asked in built for slot in asked.slots]
        return Prepared(
            labels=tuple(asked.label for asked in built),
            steps=len(built),
            examples=tuple(prefill(asked.prompt) for asked in built[:2]),
            length=self.tokens,
            summary=f"{len(built)} prompts of {self.tokens} tokens, each with {self.told()}",
            payload=built,
            chance=float(np.mean([slot.chance for slot in slots])),
        )

    @torch.inference_mode()
    def evaluate(self, pretrained: Pretrained, data: Prepared, advance: Callable[[], None]) -> Outcome:
        scores = []
        for asked in data.payload:
            scores.append(asked.score(partial(_tell, pretrained.model, _read(pretrained.model, asked.ids))))
            advance()
        return Outcome(np.array(scores, np.float64), None)

    @abstractmethod
    def told(self) -> str:
        """What a prompt holds and asks for, in words."""

    @abstractmethod
    def build(self, tokenizer: Any, index: int, draw: random.Random) -> Asked:
        """One item.

        Args:
            tokenizer: the tokenizer of Transformers.
            index: the index of the item, from 0.
            draw: decides everything that is not decided by the index.

        Raises:
            ValueError: ``tokens`` do not suffice, or the tokenizer does not tell candidates apart.
        """


@dataclass(frozen=True)
class InTexts(Choosing):
    """Those whose prompts are made of texts.

    Args:
        texts: what prompts are filled with; None for Wikipedia articles.
    """

    texts: tuple[Text, ...] | None = None

    def source(self) -> tuple[Text, ...]:
        """The texts."""
        return wikipedia() if self.texts is None else self.texts

    def words(self, data: Prepared) -> Sequence[str]:
        return [text.body for text in self.source()[: self.items]]


def ask(tokenizer: Any, questions: Sequence[Question]) -> tuple[Slot, ...]:
    """The questions in tokens. Shorter ones begin with line breaks, so that all are equally long.

    Args:
        tokenizer: the tokenizer of Transformers.
        questions: at least one.

    Raises:
        ValueError: the tokenizer does not tell candidates apart.
    """
    found = [_slot(tokenizer, question) for question in questions]
    longest = max(len(ids) for ids, _, _ in found)
    (*_, space) = encode(tokenizer, "\n")
    return tuple(
        Slot(torch.tensor([[space] * (longest - len(ids)) + ids], device="cpu"), right, wrong)
        for ids, right, wrong in found
    )


def _slot(tokenizer: Any, question: Question) -> tuple[list[int], tuple[int, ...], tuple[int, ...]]:
    shared, telling = _telling(tokenizer, [*question.right, *question.wrong])
    right = tuple(telling[word] for word in question.right if word in telling)
    others = (telling[word] for word in question.wrong if word in telling)
    wrong = tuple(dict.fromkeys(token for token in others if token not in right))
    if not wrong or len(set(right)) < len(question.right):
        raise ValueError(
            f"ask: candidates must begin with different tokens: {', '.join(question.right)} and others do not; take a "
            "tokenizer of words or parts of words"
        )
    return encode(tokenizer, question.text) + shared, right, wrong[: (_CANDIDATES - 1) * len(right)]


def asked(label: str, body: Sequence[int], slots: tuple[Slot, ...]) -> Asked:
    """A text with its questions.

    Args:
        label: what tells it from the others.
        body: the token ids of the text.
        slots: the questions.
    """
    return Asked(label, torch.tensor([body], device="cpu"), slots)


def width(slots: Sequence[Slot]) -> int:
    """How many tokens a question has."""
    return slots[0].ids.shape[1]


def _read(model: Any, ids: Tensor) -> Any:
    """A cache that holds a text."""
    from dynattn.kv_caches import FullCache
    from dynattn.kv_caches.drafts.greedy import forward

    cache = FullCache()
    forward(model, ids.to(model.device), None, cache)
    return cache


def _tell(model: Any, cache: Any, ids: Tensor) -> Tensor:
    """The logits at the end of a question about a text that is in the cache; the cache is left as it was."""
    from dynattn.kv_caches.drafts.greedy import forward

    told = forward(model, ids.to(model.device), None, cache)[0]
    for layer in cache.layers:  # what they returned is read no more, so that nothing need be copied
        layer.crop(-ids.shape[1], keep_room=True)
    return told


def apart(tokenizer: Any, words: Sequence[str], count: int) -> list[str]:
    """The first so many words that differ in the token that tells them apart.

    Raises:
        ValueError: there are not so many.
    """
    _, telling = _telling(tokenizer, words)
    first: dict[int, str] = {}
    for word in words:
        if word in telling:
            first.setdefault(telling[word], word)
    if len(first) < count:
        raise ValueError(
            f"apart: {count} words must begin with different tokens: {len(first)} of {len(words)} do; take a tokenizer "
            "of words or parts of words, or texts of more different words"
        )
    return list(first.values())[:count]


def _telling(tokenizer: Any, words: Sequence[str]) -> tuple[list[int], dict[str, int]]:
    """The tokens that all words begin with, a blank before them, and of each word the token after these."""
    coded = {word: encode(tokenizer, f" {word}") for word in words}
    columns = takewhile(lambda column: len(set(column)) == 1, zip(*coded.values(), strict=False))
    shared = [column[0] for column in columns] if len(coded) > 1 else []
    return shared, {word: ids[len(shared)] for word, ids in coded.items() if len(ids) > len(shared)}
