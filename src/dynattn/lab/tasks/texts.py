"""Long real texts: Wikipedia articles from gensim's test data, or the user's own."""

from __future__ import annotations

import bz2
import os
import re
from functools import cache
from pathlib import Path
from typing import NamedTuple

from dynattn.lab.data.packages import DataMissingError
from dynattn.lab.data.plaintext import read_text, shown
from dynattn.lab.spelling import spelt

_DUMP = "enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2"
_SHORTEST_ARTICLE = 5000  # characters of markup; shorter pages are redirects and stubs
_SHORTEST_PARAGRAPH = 200  # characters; shorter lines are captions, list items and what is left of tables

_TAIL = re.compile(r"\n=+ *(References|See also|Notes|External links|Footnotes|Further reading|Bibliography) *=+")
_HEADING = re.compile(r"={2,}.*?={2,}\n")
_EMPTY_PARENTHESES = re.compile(r"\(\s*[;,]?\s*\)")


class Text(NamedTuple):
    """A text and what to call it."""

    title: str
    body: str


@cache
def wikipedia() -> tuple[Text, ...]:
    """The articles of a shortened English Wikipedia dump, as plain paragraphs, the longest first.

    Raises:
        DataMissingError: gensim, whose test data holds the dump, is not installed.

    Source: Wikipedia, CC BY-SA; gensim 4.4.0, gensim/test/test_data.
    """
    try:
        from gensim.corpora.wikicorpus import extract_pages, filter_wiki
        from gensim.test.utils import datapath
    except ImportError as error:
        raise DataMissingError(
            "wikipedia: the articles are in gensim's test data: pip install 'dynattn[evals]'; "
            f"or give texts of your own with {spelt('--text')}"
        ) from error
    with bz2.open(datapath(_DUMP)) as dump:
        found = extract_pages(dump, filter_namespaces=("0",))  # pyright: ignore[reportArgumentType]
        pages = [(title, markup) for title, markup, _ in found if len(markup) > _SHORTEST_ARTICLE]
    texts = (Text(title, _paragraphs(filter_wiki(markup))) for title, markup in pages)
    return tuple(sorted(texts, key=lambda text: -len(text.body)))


def read(path: Path) -> tuple[Text, ...]:
    r"""The user's own texts.

    Args:
        path: a folder, of which every ``.txt`` and ``.md`` file is a text, or a file, of which every line is one. Lines
            end with ``\n``, ``\r\n`` or ``\r``, and with nothing else.

    Returns:
        The texts, the longest first.

    Raises:
        ValueError: there is no such path, a file or folder cannot be read or is no text, see
            :func:`dynattn.lab.data.plaintext.read_text`, or there is no text in it.
    """
    if path.is_dir():
        texts = [Text(shown(file.relative_to(path)), read_text(file).strip()) for file in _files(path)]
    elif path.exists():
        lines = read_text(path).split("\n")
        texts = [Text(f"line {number}", line.strip()) for number, line in enumerate(lines, start=1)]
    else:
        raise ValueError(
            f"read: path must be a file or a folder: got {shown(path)}; check the spelling of {spelt('--text')}"
        )
    texts = [text for text in texts if text.body]
    if not texts:
        raise ValueError(f"read: there must be a text: {shown(path)} has none; a folder needs .txt or .md files")
    return tuple(sorted(texts, key=lambda text: -len(text.body)))


def _files(folder: Path) -> list[Path]:
    """The files of text in a folder and its folders. Pipes, which would be waited for, and broken links are refused."""

    def refuse(error: OSError) -> None:
        raise ValueError(
            f"read: {error.filename} must be a folder that can be read: {error.strerror}; mend its permissions, or "
            f"move it out of the folder that {spelt('--text')} names"
        ) from error

    inside = (Path(home) / name for home, _, names in os.walk(folder, onerror=refuse) for name in names)
    found = sorted(path for path in inside if path.suffix.lower() in (".txt", ".md"))
    for path in found:
        if not path.is_file():
            raise ValueError(
                f"read: {shown(path)} must be a file of text: it is a broken link or a pipe; move it out of the folder "
                f"that {spelt('--text')} names"
            )
    return found


def sentences(body: str) -> list[str]:
    """Cut at full stops, question and exclamation marks that a capital letter follows."""
    return [s for s in re.split(r"(?<=[.!?])\s+(?=[A-Z\"“])", body) if s]


def _paragraphs(text: str) -> str:
    """Wiki text, its templates already taken out, less headings, lists, quotes of markup and the references."""
    tail = _TAIL.search(text)
    text = text[: tail.start()] if tail else text
    text = _HEADING.sub("\n", re.sub(r"'{2,}", "", text))
    lines = [line for line in text.splitlines() if len(line) > _SHORTEST_PARAGRAPH and line[0] not in "*#|!:;{"]
    return _EMPTY_PARENTHESES.sub("", re.sub(r"\[\[|\]\]|\{\{|\}\}", "", "\n".join(lines)))
