"""Made-up texts, and the contexts of a task read back from its tokens.

A tokenizer of bytes gives the texts back exactly.
"""

from __future__ import annotations

import random
import string
from collections.abc import Iterable
from types import SimpleNamespace
from typing import NamedTuple

import pytest

pytest.importorskip("transformers")

from transformers import ByT5Tokenizer

from dynattn.lab.tasks.choosing import Choosing
from dynattn.lab.tasks.recall import Recall
from dynattn.lab.tasks.texts import Text

BYTES = ByT5Tokenizer()


def made_up(count: int = 3, sentences: int = 300) -> tuple[Text, ...]:
    draw = random.Random(0)
    words = ["".join(draw.choices(string.ascii_lowercase, k=draw.randint(4, 9))) for _ in range(400)]

    def line() -> str:
        return " ".join(draw.choices(words, k=draw.randint(8, 16))).capitalize() + f" in {draw.randint(1, 9999)}."

    return tuple(Text(f"text {i}", " ".join(line() for _ in range(sentences))) for i in range(count))


TEXTS = made_up()
CHOSEN = (
    "ruler-needles", "ruler-variables", "ruler-common-words", "ruler-frequent-words", "story-retrieval",
    "story-multi-hop", "story-filtering",
)  # fmt: skip
"""Tasks whose answers are chosen among candidates."""


def read_back(task: Recall, tokenizer=BYTES) -> list[tuple[str, str]]:
    """Context with question, and answer, of each item."""
    data = task.prepare(SimpleNamespace(processor=tokenizer, kind="decoder"))  # type: ignore[arg-type]
    return [
        (str(tokenizer.decode(ids[0, :-answer])), str(tokenizer.decode(ids[0, -answer:])))
        for ids, answer in data.payload
    ]


class Letters:
    """A tokenizer of letters, much faster than that of bytes."""

    def __call__(self, text: str, add_special_tokens: bool = False) -> dict[str, list[int]]:
        return {"input_ids": [ord(letter) for letter in text]}

    def decode(self, ids: Iterable[int]) -> str:
        return "".join(chr(token) for token in ids)


LETTERS = Letters()


class Told(NamedTuple):
    """A question, and the letters with which its candidates go on."""

    text: str
    right: set[str]
    wrong: set[str]

    def goes_on(self, question: str, word: str) -> str:
        """The letter with which an answer goes on; behind the question stands what all candidates begin with."""
        return f" {word}"[len(self.text) - self.text.rindex(question) - len(question)]


def asked_of(task: Choosing) -> list[tuple[str, list[Told]]]:
    """Of each item the text, and its questions, each with the text before it."""
    data = task.prepare(SimpleNamespace(processor=LETTERS, kind="decoder"))  # type: ignore[arg-type]
    found = []
    for one in data.payload:
        text = LETTERS.decode(one.ids[0].tolist())
        asked = [
            Told(text + LETTERS.decode(ids[0].tolist()), set(map(chr, right)), set(map(chr, wrong)))
            for ids, right, wrong in one.slots
        ]
        found.append((text, asked))
    return found
