"""Texts are cut without overlap, and no part sees what another one has."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("transformers")

from dynattn.lab.models import load
from dynattn.lab.tasks.texts import Text, read
from dynattn.lab.tune import pieces


@pytest.fixture(scope="module")
def pretrained(tiny_decoder):
    return load(str(tiny_decoder))


def test_pieces_are_consecutive_and_full(pretrained, texts):
    own = read(texts)
    found = pieces.cut(pretrained, own, 100, 1000)
    assert {piece.ids.shape for piece in found} == {(1, 100)}
    assert [piece.text for piece in found[:2]] == [0, 1]  # the first of each text come first
    for number, text in enumerate(own):
        ids = pretrained.processor(text.body, return_tensors="pt")["input_ids"][0]
        mine = torch.cat([piece.ids[0] for piece in found if piece.text == number])
        assert torch.equal(mine, ids[: len(mine)])
        assert len(ids) - len(mine) < 100
    assert len({piece.title for piece in found}) == len(found)


def test_no_more_pieces_are_cut_than_asked_for(pretrained, texts):
    assert len(pieces.cut(pretrained, read(texts), 64, 3)) == 3
    assert pieces.cut(pretrained, [Text("short", "moon river")], 64, 3) == []


def test_a_text_gives_one_piece_where_there_are_enough_texts(pretrained, many_texts):
    found = pieces.draw(pretrained, read(many_texts), 64, 60, 10)
    assert found.apart
    assert len(found.pieces) == len({piece.text for piece in found.pieces}) == 10
    assert len(pieces.draw(pretrained, read(many_texts), 64, 7, 5).pieces) == 7


def test_where_there_are_too_few_texts_pieces_are_drawn_by_chance_and_this_is_said(pretrained, texts):
    found = pieces.draw(pretrained, read(texts), 64, 20, 10)
    assert not found.apart
    titles = [piece.title for piece in found.pieces]
    assert len(titles) == len(set(titles)) == 20
    assert set(titles) <= {piece.title for piece in pieces.cut(pretrained, read(texts), 64, 1000)}
    assert found.whose == "pieces, drawn by chance from 2 texts, and speaking of these alone,"


def test_every_part_of_a_long_text_is_as_likely_to_be_drawn(pretrained, texts):
    """The mean place of the pieces that are taken is the middle of the text, and not of its beginning."""
    (own,) = read(texts)[:1]
    every = pieces.cut(pretrained, [own], 16, 1000)
    place = {piece.title: number for number, piece in enumerate(every)}
    found = pieces.draw(pretrained, [own], 16, 40, 30)
    assert len(found.pieces) == 40 < len(every) / 2
    taken = torch.tensor([float(place[piece.title]) for piece in found.pieces])
    middle, spread = (len(every) - 1) / 2, len(every) / 12**0.5
    assert abs(taken.mean() - middle) < 3 * spread / 40**0.5
    assert taken.max() > 0.8 * len(every)
    assert found.whose == "pieces, drawn by chance from 1 text, and speaking of it alone,"


def test_texts_that_are_too_short_are_not_among_those_that_are_drawn_from(pretrained, texts):
    found = pieces.draw(pretrained, [*read(texts), Text("short", "moon river")], 64, 20, 10)
    assert found.texts == 2


def test_too_few_pieces_stay_too_few(pretrained, texts):
    assert len(pieces.draw(pretrained, read(texts)[:1], 400, 60, 10).pieces) < 10
    assert pieces.draw(pretrained, [], 64, 60, 10).pieces == []
