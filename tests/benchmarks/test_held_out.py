"""Tests of the held-out texts: nothing that settings were chosen by is among them, and none is there twice."""

import json

import pytest

CHOSEN_BY = {41, 42}  # the chapters on which it was settled that neighbours are kept by force
CHAPTERS = 135
CHARACTERS = 7000  # of a chapter, about the mean of the novel
LONGEST = 8192 * 2 * 4  # characters that block_choices.py asks for at its greatest length
TOKEN = 4  # characters of a token; those of program code have fewer


@pytest.fixture
def held_out(script):
    return script("held_out")


@pytest.fixture
def literature(held_out, tmp_path, monkeypatch):
    """The texts from a novel whose chapters name themselves."""
    (tmp_path / "data").mkdir()
    for chapter in range(1, CHAPTERS + 1):
        body = {"title": f"<{chapter}>", "text": "x" * CHARACTERS}
        (tmp_path / "data" / f"chapter_{chapter}.json").write_text(json.dumps(body))
    monkeypatch.setattr(held_out.npm, "folder", lambda *_: tmp_path)
    return held_out.texts("literature", LONGEST)


def chapters(text):
    return {int(part.split(">")[0]) for part in text.body.split("<")[1:]}


def test_chapters_that_settings_were_chosen_by_are_in_no_text(literature):
    assert not set().union(*map(chapters, literature)) & CHOSEN_BY


def test_no_chapter_is_in_two_texts(literature):
    read = [chapters(text) for text in literature]
    assert sum(map(len, read)) == len(set().union(*read))


def test_a_text_is_as_long_as_was_asked_for(literature):
    assert len(literature) == 6
    assert all(len(text.body) >= LONGEST for text in literature)


def test_the_module_that_settings_were_chosen_by_is_no_text(held_out):
    names = [text.title for text in held_out.texts("code", LONGEST)]
    assert len(set(names)) == len(names) == 6
    assert "tarfile.py" not in names


def test_modules_are_long_enough_for_the_greatest_length(held_out):
    assert all(len(text.body) > 8192 * TOKEN for text in held_out.texts("code", LONGEST))
