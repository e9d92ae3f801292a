r"""Takes capitals and punctuation out of real texts: a model reads the rest, and has to put them back.

    written:  In 1861, after the war began, Lincoln called for volunteers.
    read:     in 1861 after the war began lincoln called for volunteers

Every word has one of six classes: whether it begins with a capital, and which mark follows it: none, a comma, or the
end of a sentence. Other marks and all brackets and quotes are left out. A passage is judged by F1 over its capitals and
marks: hits are capitals found and marks found, at the right word and of the right kind.

    F1 = 2 · hits / (marks and capitals said + marks and capitals there)

Source of the task: Tilk and Alumäe, Interspeech 2016 (punctuation of transcripts of speech), where a mark is judged
alike.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from dynattn.lab.tasks.base import Inputs
from dynattn.lab.tasks.texts import Text

CLASSES = ("a", "A", "a,", "A,", "a.", "A.")
"""A class is 2 · mark + capital."""

IGNORED = -100
"""Label of a token that is not the last one of a word; what cross entropy leaves out unless told otherwise."""

_WORD = re.compile(r"(\w+(?:[.,'’&/-]\w+)*)[\"”’)\]]*([.,!?]?)")  # 1,000 and don't are one word each
_MARK = {"": 0, ",": 1, ".": 2, "!": 2, "?": 2}


class Passage(NamedTuple):
    """Some words in a row.

    Attributes:
        label: a name.
        words: the words, in lower case.
        written: class of each.
    """

    label: str
    words: tuple[str, ...]
    written: tuple[int, ...]

    @property
    def read(self) -> str:
        """What a model gets to read."""
        return " ".join(self.words)


def passages(tokenizer: Any, text: Text, tokens: int) -> list[Passage]:
    """Cut a text into passages that fill ``tokens`` without cutting a word; what is left at its end is dropped.

    Args:
        tokenizer: a fast one of Transformers.
        text: the text with its capitals and marks.
        tokens: the number of tokens of a passage, those that the tokenizer adds included.
    """
    found = [(word.lower(), 2 * _MARK[mark] + word[0].isupper()) for word, mark in _WORD.findall(text.body)]
    whole = Passage(text.title, tuple(word for word, _ in found), tuple(written for _, written in found))
    room = tokens - tokenizer.num_special_tokens_to_add()
    given = tokenizer(whole.read, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    starts = [start for start, stop in given["offset_mapping"] if start < stop]
    before = np.searchsorted(starts, [0, *(end + 1 for end in _ends(whole))])  # tokens before each word, and in all
    out: list[Passage] = []
    first = 0
    for last in range(1, len(found) + 1):
        if before[last] - before[first] > room and last - 1 > first:
            chosen = slice(first, last - 1)
            out.append(Passage(f"{text.title} {len(out) + 1}", whole.words[chosen], whole.written[chosen]))
            first = last - 1
    return out


def encode(tokenizer: Any, chosen: Sequence[Passage], tokens: int) -> tuple[Inputs, Tensor]:
    """Passages as a model takes them.

    Args:
        tokenizer: a fast one of Transformers.
        chosen: the passages.
        tokens: longer ones are cut.

    Returns:
        The model's inputs, and (passages, length) int64: the class of each word at its last token, else
        :data:`IGNORED`.
    """
    texts = [passage.read for passage in chosen]
    given = dict(
        tokenizer(
            texts, padding=True, truncation=True, max_length=tokens, return_offsets_mapping=True, return_tensors="pt"
        )
    )
    spans = given.pop("offset_mapping").tolist()  # of characters; (0, 0) for padding and for added tokens
    labels = torch.full(given["input_ids"].shape, IGNORED, device="cpu")
    for row, passage in enumerate(chosen):
        written = dict(zip(_ends(passage), passage.written, strict=True))
        for column, (_, stop) in enumerate(spans[row]):
            labels[row, column] = written.get(stop, IGNORED)
    return given, labels


def f1(said: Tensor, there: Tensor) -> float:
    """The score above.

    Args:
        said: (words,) classes.
        there: (words,) classes.

    Returns:
        In [0, 1]; 1 where nothing is there and nothing was said.
    """
    capital, mark = said % 2, said // 2
    hits = ((capital == there % 2) & (capital > 0)).sum() + ((mark == there // 2) & (mark > 0)).sum()
    both = sum(int((classes % 2).sum() + (classes // 2 > 0).sum()) for classes in (said, there))
    return 2 * int(hits) / both if both else 1.0


def _ends(passage: Passage) -> list[int]:
    """Where each word ends in what is read."""
    return [int(end) for end in np.cumsum([len(word) + 1 for word in passage.words]) - 1]
