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


def test_no_text_is_in_two_parts_where_there_are_enough(pretrained, many_texts):
    found = pieces.cut(pretrained, read(many_texts), 64, 60)
    parts = pieces.deal(found, [10, 12, 12], [2, 4, 4])
    assert parts is not None
    assert [len(part) for part in parts] == [10, 12, 12]
    seen = [{piece.text for piece in part} for part in parts]
    assert sum(map(len, seen)) == len(seen[0] | seen[1] | seen[2])


def test_no_piece_is_in_two_parts_where_there_is_one_text(pretrained, texts):
    found = pieces.cut(pretrained, read(texts)[:1], 100, 100)
    parts = pieces.deal(found, [3, 4, 4], [2, 4, 4])
    assert parts is not None
    titles = [piece.title for part in parts for piece in part]
    assert len(titles) == len(set(titles)) == 11


def test_too_few_pieces_make_no_parts(pretrained, texts):
    assert pieces.deal(pieces.cut(pretrained, read(texts)[:1], 400, 100), [3, 4, 4], [2, 4, 4]) is None
    assert pieces.deal([], [1, 1], [1, 1]) is None
