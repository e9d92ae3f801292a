"""Made-up texts, and the contexts of a task read back from its tokens.

A tokenizer of bytes gives the texts back exactly.
"""

from __future__ import annotations

import random
import string
from types import SimpleNamespace

import pytest

pytest.importorskip("transformers")

from transformers import ByT5Tokenizer

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


def read_back(task: Recall, tokenizer=BYTES) -> list[tuple[str, str]]:
    """Context with question, and answer, of each item."""
    data = task.prepare(SimpleNamespace(processor=tokenizer, kind="decoder"))  # type: ignore[arg-type]
    return [
        (str(tokenizer.decode(ids[0, :-answer])), str(tokenizer.decode(ids[0, -answer:])))
        for ids, answer in data.payload
    ]
