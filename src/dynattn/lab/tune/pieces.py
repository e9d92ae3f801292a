"""Texts cut to the length, for the search and for the proof."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from dynattn.lab.models import Pretrained
from dynattn.lab.tasks.texts import Text

_CHARACTERS_PER_TOKEN = 24  # more than any tokenizer's, on average: what is longer is not tokenized


T = TypeVar("T")


class Piece(NamedTuple):
    """Consecutive tokens of one text.

    Attributes:
        title: the title of the text, and the tokens' places in it.
        text: number of the text that it is from.
        ids: (1, length).
    """

    title: str
    text: int
    ids: Tensor


def cut(pretrained: Pretrained, texts: Sequence[Text], length: int, most: int) -> list[Piece]:
    """Pieces of exactly ``length`` tokens: the first of each text, then the second of each, and so on.

    Args:
        pretrained: brings the tokenizer.
        texts: any.
        length: tokens.
        most: pieces that are needed.

    Returns:
        At most ``most``; none of them overlap.
    """
    each = -(-most // max(1, len(texts)))
    while True:
        found = in_rounds(_pieces(pretrained, texts, length, each, most))
        if len(found) >= most or each >= most:
            return found[:most]
        each = min(most, 4 * each)


class Drawn(NamedTuple):
    """Pieces in the order in which they are taken.

    Attributes:
        pieces: no two of them overlap.
        apart: whether no two are of one text, so that they are draws of texts; else they are draws of the pieces of
            these texts, by chance and without putting back, and what is found of them is about these texts.
        texts: how many texts they were drawn from.
    """

    pieces: list[Piece]
    apart: bool
    texts: int

    @property
    def whose(self) -> str:
        """What the pieces are, in words that follow their number."""
        if self.apart:
            return "texts"
        these = "1 text, and speaking of it" if self.texts == 1 else f"{self.texts} texts, and speaking of these"
        return f"pieces, drawn by chance from {these} alone,"


def draw(pretrained: Pretrained, texts: Sequence[Text], length: int, most: int, least: int) -> Drawn:
    """The first piece of each text, or, where that are too few, pieces of all texts by chance.

    Two pieces of one text are more alike than two of different texts, and do not tell as much about texts. Every piece
    of every text may be drawn, so that what is found of them speaks of the whole of these texts.

    Args:
        pretrained: brings the tokenizer.
        texts: any, in an order that does not matter.
        length: tokens.
        most: pieces that are of use.
        least: pieces below which there are too few.
    """
    first = in_rounds(_pieces(pretrained, texts, length, 1, most))[:most]
    if len(first) >= least:
        return Drawn(first, True, len(first))
    every = [parts for parts in _pieces(pretrained, texts, length) if parts]
    return Drawn(shuffled([piece for parts in every for piece in parts])[:most], False, len(every))


def _pieces(
    pretrained: Pretrained, texts: Sequence[Text], length: int, each: int | None = None, most: int | None = None
) -> list[list[Piece]]:
    """The pieces of each text: so many of its first ones, until there are so many in all; None for every one."""
    found: list[list[Piece]] = []
    for number, text in enumerate(texts):
        if most is not None and sum(map(len, found)) >= most and len(found) >= most:
            break
        body = text.body if each is None else text.body[: each * length * _CHARACTERS_PER_TOKEN]
        ids = pretrained.processor(body, add_special_tokens=True, return_tensors="pt", verbose=False)["input_ids"]
        parts = [part for part in ids.split(length, dim=1)[:each] if part.shape[1] == length]
        found.append([Piece(_title(text.title, i, len(parts), length), number, part) for i, part in enumerate(parts)])
    return found


def in_rounds(found: Sequence[Sequence[T]]) -> list[T]:
    """The first piece of each text, then the second of each, and so on."""
    rounds = max(map(len, found), default=0)
    return [parts[i] for i in range(rounds) for parts in found if i < len(parts)]


def _title(text: str, number: int, many: int, length: int) -> str:
    return text if many == 1 else f"{text}, tokens {number * length}–{(number + 1) * length - 1}"


def shuffled(things: Sequence[T], seed: int = 0) -> list[T]:
    """In another order, always the same: texts come sorted by length, and parts are to be alike."""
    order = torch.randperm(len(things), generator=torch.Generator().manual_seed(seed), device="cpu").tolist()
    return [things[i] for i in order]
