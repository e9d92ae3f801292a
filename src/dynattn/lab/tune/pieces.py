"""Texts cut to the length, and dealt to the search and to the proof so that neither has seen the other's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from dynattn.lab.models import Pretrained
from dynattn.lab.tasks.texts import Text

_CHARACTERS_PER_TOKEN = 24  # more than any tokenizer's, on average: what is longer is not tokenized


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
        found = _pieces(pretrained, texts, length, each, most)
        if len(found) >= most or each >= most:
            return found[:most]
        each = min(most, 4 * each)


def deal(pieces: Sequence[Piece], wanted: Sequence[int], least: Sequence[int]) -> list[list[Piece]] | None:
    """Pieces for several parts, no text in two of them; where there are too few texts, no piece in two of them.

    Args:
        pieces: what :func:`cut` gave.
        wanted: how many each part would take.
        least: how many each part has to have.

    Returns:
        The pieces of each part, or None where there are too few.
    """
    by_text: dict[int, list[Piece]] = {}
    for piece in pieces:
        by_text.setdefault(piece.text, []).append(piece)
    parts = _dealt(list(by_text.values()), wanted)
    if not _enough(parts, least):
        parts = _dealt([[piece] for piece in pieces], wanted)
    return parts if _enough(parts, least) else None


def _pieces(pretrained: Pretrained, texts: Sequence[Text], length: int, each: int, most: int) -> list[Piece]:
    found: list[list[Piece]] = []
    for number, text in enumerate(texts):
        if sum(map(len, found)) >= most and len(found) >= most:
            break
        body = text.body[: each * length * _CHARACTERS_PER_TOKEN]
        ids = pretrained.processor(body, add_special_tokens=True, return_tensors="pt", verbose=False)["input_ids"]
        parts = [part for part in ids.split(length, dim=1)[:each] if part.shape[1] == length]
        found.append([Piece(_title(text.title, i, len(parts), length), number, part) for i, part in enumerate(parts)])
    rounds = max(map(len, found), default=0)
    return [parts[i] for i in range(rounds) for parts in found if i < len(parts)]


def _title(text: str, number: int, many: int, length: int) -> str:
    return text if many == 1 else f"{text}, tokens {number * length}–{(number + 1) * length - 1}"


def _dealt(bundles: list[list[Piece]], wanted: Sequence[int]) -> list[list[Piece]]:
    """Each bundle goes whole to the part that lacks the largest share of what it wants."""
    parts: list[list[list[Piece]]] = [[] for _ in wanted]
    for bundle in bundles:
        filled = [sum(map(len, part)) / max(1, want) for part, want in zip(parts, wanted, strict=True)]
        parts[filled.index(min(filled))].append(bundle)
    return [_in_turn(part)[:want] for part, want in zip(parts, wanted, strict=True)]


def _in_turn(bundles: list[list[Piece]]) -> list[Piece]:
    rounds = max(map(len, bundles), default=0)
    return [bundle[i] for i in range(rounds) for bundle in bundles if i < len(bundle)]


def _enough(parts: Sequence[Sequence[Piece]], least: Sequence[int]) -> bool:
    return all(len(part) >= few for part, few in zip(parts, least, strict=True))


def text_of(pretrained: Pretrained, piece: Piece) -> Text:
    """The piece as text again."""
    return Text(piece.title, pretrained.processor.decode(piece.ids[0], skip_special_tokens=True))


def shuffled(texts: Sequence[Text], seed: int = 0) -> list[Text]:
    """In another order, always the same: texts come sorted by length, and parts are to be alike."""
    order = torch.randperm(len(texts), generator=torch.Generator().manual_seed(seed), device="cpu").tolist()
    return [texts[i] for i in order]
