"""The user's own texts: each file of a folder, each line of a file, and nothing that was read wrongly."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dynattn.lab.tasks.texts import Text, read, sentences, wikipedia


def test_lines_end_where_lines_end_and_nowhere_else(tmp_path: Path):
    path = tmp_path / "lines.txt"
    path.write_bytes("a\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029still one line\r\ntwo\rthree\n\nfour".encode())
    assert [text.title for text in read(path)] == ["line 1", "line 3", "line 5", "line 2"]
    assert "still one line" in read(path)[0].body
    assert "\u2028" in read(path)[0].body


def test_a_folder_gives_a_text_a_file_whatever_it_is_written_in(tmp_path: Path):
    (tmp_path / "deeper").mkdir()
    (tmp_path / "a.txt").write_bytes("Größe und mehr".encode("utf-16"))
    (tmp_path / "deeper" / "b.MD").write_bytes("\ufeffein Text".encode())
    (tmp_path / "c.txt").write_bytes(b"")
    (tmp_path / "d.csv").write_bytes(b"\xff\0")
    (tmp_path / "folder.txt").mkdir()
    (tmp_path / "again").symlink_to(tmp_path)
    (tmp_path / os.fsdecode(b"\xf6.txt")).write_text("Umlaut")
    assert read(tmp_path) == (
        Text("a.txt", "Größe und mehr"),
        Text("deeper/b.MD", "ein Text"),
        Text(r"\xf6.txt", "Umlaut"),
    )


@pytest.mark.parametrize("make", [lambda p: p.symlink_to("nowhere"), lambda p: p.symlink_to(p), os.mkfifo])
def test_what_cannot_be_read_is_not_left_out_without_a_word(tmp_path: Path, make):
    (tmp_path / "good.txt").write_text("a text")
    make(tmp_path / "bad.txt")
    with pytest.raises(ValueError, match=r"bad\.txt must be a file of text: it is a broken link or a pipe"):
        read(tmp_path)


def test_one_bad_file_refuses_the_folder_by_its_name(tmp_path: Path):
    (tmp_path / "good.txt").write_text("a text")
    (tmp_path / "bad.txt").write_bytes("Größe".encode("latin-1"))
    with pytest.raises(ValueError, match=r"bad\.txt must be text in UTF-8.* byte 0xf6 at offset 2.*iconv -f cp1252"):
        read(tmp_path)


def test_nothing_to_read_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="must be a file or a folder"):
        read(tmp_path / "none")
    with pytest.raises(ValueError, match="there must be a text"):
        read(tmp_path)
    (tmp_path / "blank.txt").write_text(" \n\t\n")
    with pytest.raises(ValueError, match="there must be a text"):
        read(tmp_path / "blank.txt")
    with pytest.raises(ValueError, match="must be a file of text: it is a device"):
        read(Path("/dev/zero"))


def test_wikipedia_gives_long_plain_articles():
    pytest.importorskip("gensim")
    articles = wikipedia()
    assert len(articles) > 80
    assert sum(len(article.body) > 20_000 for article in articles) > 40
    for mark in ("[[", "{{", "==", "'''"):
        assert not any(mark in article.body for article in articles)


def test_read_takes_files_of_a_folder_or_lines_of_a_file(tmp_path: Path):
    (tmp_path / "a.txt").write_text("short")
    (tmp_path / "b.md").write_text("somewhat longer")
    (tmp_path / "c.bin").write_text("not a text at all, and the longest")
    assert [text.title for text in read(tmp_path)] == ["b.md", "a.txt"]
    lines = tmp_path / "lines"
    lines.write_text("one\n\nand three\n")
    assert [tuple(text) for text in read(lines)] == [("line 3", "and three"), ("line 1", "one")]
    with pytest.raises(ValueError, match="file or a folder"):
        read(tmp_path / "missing")
    (tmp_path / "empty").write_text("\n")
    with pytest.raises(ValueError, match="must be a text"):
        read(tmp_path / "empty")


def test_sentences_end_before_a_capital():
    assert sentences("It cost 3.50 e.g. in May. Why? Because!") == ["It cost 3.50 e.g. in May.", "Why?", "Because!"]
