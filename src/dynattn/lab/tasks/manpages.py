"""Find the manual page by its one-line description, among the pages installed on this machine."""

from __future__ import annotations

import gzip
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, NamedTuple, final

import numpy as np

from dynattn.lab.data.packages import DataMissingError
from dynattn.lab.models import Kind, Pretrained
from dynattn.lab.tasks import embedding
from dynattn.lab.tasks.base import Outcome, Pair, Prepared, Task

_SECTIONS = ("DESCRIPTION", "RETURN VALUE", "ERRORS", "NOTES", "BUGS")
_CHARACTERS = {
    r"\-": "-", r"\e": "\\", r"\(aq": "'", r"\(em": "--", r"\(bu": "*", r"\ ": " ", r"\(ti": "~", r"\(ha": "^",
}  # fmt: skip
_CHARACTERS_PER_TOKEN = 4  # of English under a subword tokenizer, roughly: to tell long pages before tokenizing


class _Page(NamedTuple):
    name: str
    line: str
    body: str


class _Payload(NamedTuple):
    items: list[_Page]
    rest: list[_Page]
    tokens: int


@final
@dataclass(frozen=True)
class Manpages(Task):
    """Description to page, MRR@10; an item is a page.

    Args:
        items: pages, spread evenly over those that fill ``tokens``.
        tokens: the number of tokens of a page, fewer where the model takes fewer. Longer pages are cut, and shorter
            ones are left out.
        folder: where manual pages are installed.
    """

    items: int = 96
    tokens: int = 512
    folder: Path = Path("/usr/share/man")

    name: ClassVar[str] = "manpages"
    kinds: ClassVar[tuple[Kind, ...]] = ("encoder",)
    metric: ClassVar[str] = "MRR@10"
    higher_is_better: ClassVar[bool] = True

    def prepare(self, pretrained: Pretrained) -> Prepared:
        tokens = embedding.longest(pretrained, self.tokens)
        pages = [page for page in _read(self.folder) if len(page.body) > tokens * _CHARACTERS_PER_TOKEN]
        pages = [p for p in pages if len(pretrained.processor(p.body[: tokens * 20])["input_ids"]) >= tokens]
        if len(pages) < 2:
            raise DataMissingError(
                f"manpages: at least 2 pages of {tokens} tokens are needed: {self.folder} has {len(pages)}; on Debian "
                "and Ubuntu: apt-get install manpages manpages-dev (container images may drop them: see "
                "/etc/dpkg/dpkg.cfg.d), or leave the task out of --tasks"
            )
        spread = sorted({round(i) for i in np.linspace(0, len(pages) - 1, min(self.items, len(pages)))})
        chosen = [pages[i] for i in spread]
        examples = tuple(embedding.inputs(pretrained, [page.body], tokens) for page in chosen[:4])
        return Prepared(
            labels=tuple(page.name for page in chosen),
            steps=2 * embedding.steps(len(chosen)),
            examples=examples,
            length=tokens,
            summary=f"{len(chosen)} manual pages of {tokens} tokens, each with its one-line description as the query",
            payload=_Payload(chosen, [page for page in pages if page not in chosen], tokens),
            chance=embedding.guessed_rank(len(chosen)),
        )

    def words(self, data: Prepared) -> Sequence[str]:
        return [page.body for page in data.payload.items]

    def evaluate(self, pretrained: Pretrained, data: Prepared, advance: Callable[[], None]) -> Outcome:
        pages, _, tokens = data.payload
        documents = embedding.embed(pretrained, [page.body for page in pages], tokens, advance)
        queries = embedding.embed(pretrained, [page.line for page in pages], tokens, advance)
        return Outcome(embedding.reciprocal_ranks(queries, documents, np.arange(len(pages))), documents)

    def pairs(self, pretrained: Pretrained, data: Prepared) -> list[Pair]:
        """To train on: the pages that are not items, less those whose description names another page as well.

        Args:
            pretrained: the model that ``data`` was prepared for.
            data: what :meth:`prepare` gave.
        """
        items, rest, _ = data.payload
        lines = Counter(page.line for page in (*items, *rest))
        return [Pair(page.line, page.body) for page in rest if lines[page.line] == 1]


def _read(folder: Path) -> list[_Page]:
    """The pages of sections 2 to 8 that have a description."""
    pages = {}
    for path in sorted(folder.glob("man[2-8]/*.gz")):
        with gzip.open(path) as file:
            data = file.read()
        try:
            source = data.decode("utf-8")
        except UnicodeDecodeError:  # what man itself falls back to
            source = data.decode("latin-1")
        if re.match(r"\.so ", source):  # an alias of another page
            continue
        page = _parse(source)
        if page is not None:
            pages[page.name] = page
    return list(pages.values())


def _parse(source: str) -> _Page | None:
    """Name, one line and running text of a page written with the man macros; None where it is laid out otherwise."""
    sections = dict(re.findall(r"^@@(.*)\n((?:(?!@@).*\n?)*)", _plain(source), flags=re.MULTILINE))
    name, dash, line = sections.get("NAME", "").replace("\n", " ").strip().partition(" - ")
    body = "\n".join(text for title, text in sections.items() if title in _SECTIONS)
    if not dash or not line.strip():
        return None
    return _Page(name.strip(), line.strip(), re.sub(r"[ \t]+", " ", body).strip())


def _plain(source: str) -> str:
    """A page's words, its section titles marked by ``@@``; the other macros of groff_man(7) are dropped."""
    text = re.sub(r"^['.]\\\".*$", "", source, flags=re.MULTILINE)
    text = re.sub(r"^\.S[HS] +\"?(.*?)\"?$", r"@@\1", text, flags=re.MULTILINE)
    text = re.sub(r"^\.[TI]P\b *(.*)$", r"\1", text, flags=re.MULTILINE)
    text = re.sub(r"^\.(B|I|BR|RB|IR|RI|BI|IB|SM|SB)\b *(.*)$", _words, text, flags=re.MULTILINE)
    text = re.sub(r"^\..*$", "", text, flags=re.MULTILINE)
    text = re.sub(r"\\f[BIRP]|\\f\(..|\\&|\\c|\\%", "", text)
    for escape, character in _CHARACTERS.items():
        text = text.replace(escape, character)
    return re.sub(r"\n{2,}", "\n", text)


def _words(macro: re.Match[str]) -> str:
    """The arguments of a font macro; the two-font ones join theirs without a space."""
    words = [quoted or bare for quoted, bare in re.findall(r'"([^"]*)"|(\S+)', macro.group(2))]
    return ("" if len(macro.group(1)) == 2 and macro.group(1) not in ("SM", "SB") else " ").join(words)
