"""Manual pages: read as plain text, found by their description, and those to train on kept apart."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

pytest.importorskip("transformers")

from dynattn.lab.models import load
from dynattn.lab.tasks import DataMissingError
from dynattn.lab.tasks.manpages import Manpages, _parse
from dynattn.lab.tasks.manpages import _read as _pages


def _nothing() -> None: ...


PAGE = r""".TH OPEN 2
.\" a comment
.SH NAME
open \- open a \fIfile\fP
.SH DESCRIPTION
The
.BR open ()
call opens
.I path
for you.
.SH SEE ALSO
.BR close (2)
"""


def test_manual_pages_are_read_as_plain_text():
    page = _parse(PAGE)
    assert page is not None
    assert (page.name, page.line) == ("open", "open a file")
    assert page.body == "The\nopen()\ncall opens\npath\nfor you."
    assert _parse(".TH X\n.SH NAME\nno dash here\n") is None


def test_manpages_find_their_page_and_say_how_to_get_them(tmp_path: Path, tiny_encoder: Path):
    pretrained = load(str(tiny_encoder))
    with pytest.raises(DataMissingError, match="apt-get install manpages"):
        Manpages(folder=tmp_path).prepare(pretrained)
    folder = _manual(tmp_path, {word: f"{word} walks" for word in ("moon", "river", "stone")})
    task = Manpages(items=3, tokens=64, folder=folder)
    data = task.prepare(pretrained)
    assert data.labels == ("moon", "river", "stone")
    outcome = task.evaluate(pretrained, data, _nothing)
    assert outcome.scores is not None
    assert outcome.scores.mean() > 0.8  # each line shares its word with its page alone


def _manual(folder: Path, lines: dict[str, str]) -> Path:
    """Manual pages by name, each with its one-line description."""
    (folder / "man2").mkdir()
    for name, line in lines.items():
        source = f".SH NAME\n{name} \\- {line}\n.SH DESCRIPTION\n" + f"{name} {name} mill\n" * 80
        with gzip.open(folder / "man2" / f"{name}.2.gz", "wt") as file:
            file.write(source)
    return folder


def test_manpages_to_train_on_are_no_items_and_answer_one_description(tmp_path: Path, tiny_encoder: Path):
    pretrained = load(str(tiny_encoder))
    lines = {word: f"{word} walks" for word in ("bright", "coins", "finds", "house", "moon", "near")}
    folder = _manual(tmp_path, lines | {"river": "moon walks", "silver": "twice", "stone": "twice"})
    task = Manpages(items=3, tokens=64, folder=folder)
    data = task.prepare(pretrained)
    assert data.labels == ("bright", "moon", "stone")
    pairs = task.pairs(pretrained, data)
    assert [pair.query for pair in pairs] == ["coins walks", "finds walks", "house walks", "near walks"]
    assert all(pair.document.startswith(pair.query.split()[0]) for pair in pairs)


def test_manual_pages_of_before_utf_8_are_read_as_latin_1(tmp_path: Path):
    page = ".TH A 2\n.SH NAME\n{name} \\- says caf\u00e9\n.SH DESCRIPTION\nIt says caf\u00e9 \u00e0 la fin.\n"
    (tmp_path / "man2").mkdir()
    for name, encoding in (("new", "utf-8"), ("old", "latin-1")):
        with gzip.open(tmp_path / "man2" / f"{name}.2.gz", "wb") as file:
            file.write(page.format(name=name).encode(encoding))
    found = _pages(tmp_path)
    assert [(each.name, each.line) for each in found] == [("new", "says caf\u00e9"), ("old", "says caf\u00e9")]
    assert found[0].body == found[1].body == "It says caf\u00e9 \u00e0 la fin."
