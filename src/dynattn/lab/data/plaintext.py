"""Reads files of text. The first bytes of a file tell its encoding, or it is UTF-8. Anything else is refused by name,
because a text that is read wrongly would still give a score.
"""

from __future__ import annotations

import codecs
import stat
from pathlib import Path
from shlex import quote

# UTF-32's mark begins with UTF-16's, so it is looked for first.
_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_MARK = "\ufeff"


def read_text(path: Path) -> str:
    r"""The text in a file.

    Args:
        path: the path of a file or a pipe, in UTF-8, or in UTF-16 or UTF-32 with a byte order mark.

    Returns:
        The text without byte order marks, its lines ended by ``\n`` where the file has ``\r\n`` or ``\r``.

    Raises:
        ValueError: it is no file or cannot be read, its bytes are no text in these encodings, or it holds NUL
            characters, as binary files and UTF-16 without a mark do. The text names the file, the byte and a remedy.
    """
    data = _bytes(path)
    mark, encoding = next((each for each in _MARKS if data.startswith(each[0])), (b"", "utf-8"))
    try:
        text = data[len(mark) :].decode(encoding)
    except UnicodeDecodeError as error:
        raise ValueError(_refusal(path, data, len(mark) + error.start, encoding)) from error
    if "\0" in text:
        offset = len(mark) + len(text[: text.index("\0")].encode(encoding))
        raise ValueError(_refusal(path, data, offset, encoding))
    return text.replace(_MARK, "").replace("\r\n", "\n").replace("\r", "\n")


def shown(path: Path) -> str:
    """A path as a title: bytes of its name that are no text are written as ``\\xff``, so that it can be written."""
    return str(path).encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _bytes(path: Path) -> bytes:
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode) or stat.S_ISCHR(mode) or stat.S_ISBLK(mode):
            kind = "a folder" if stat.S_ISDIR(mode) else "a device"
            raise ValueError(f"read: {shown(path)} must be a file of text: it is {kind}; name a file")
        return path.read_bytes()
    except OSError as error:
        raise ValueError(
            f"read: {shown(path)} must be a file that can be read: {error.strerror}; check its name and permissions"
        ) from error


def _refusal(path: Path, data: bytes, offset: int, encoding: str) -> str:
    """What is wrong at a byte, and how to mend it."""
    guess = _guess(data)
    if data.startswith(tuple(mark for mark, _ in _MARKS)) or _is_cut(data, offset):
        remedy = "it is cut short or damaged there: take the file anew"  # for what stands before is what it says it is
    elif guess is None:
        remedy = "it looks like no text at all: leave it out"
    else:
        name, made = (quote(shown(path) + more) for more in ("", ".utf-8"))
        remedy = f"if it is {guess}, run: iconv -f {guess} -t utf-8 {name} > {made}, and read that"
    said = "UTF-8, or UTF-16 or UTF-32 with a byte order mark" if encoding == "utf-8" else f"{encoding}, as it begins"
    what = f"byte 0x{data[offset]:02x} at offset {offset} is not" if offset < len(data) else "its end is not"
    return f"read: {shown(path)} must be text in {said}: {what}; {remedy}"


def _is_cut(data: bytes, offset: int) -> bool:
    """Whether this is UTF-8 whose last character lacks bytes. Where all before is ASCII, it may be Latin-1 as well."""
    if data[:offset].isascii():
        return False
    try:
        codecs.getincrementaldecoder("utf-8")().decode(data)
    except UnicodeDecodeError:
        return False
    return True


def _guess(data: bytes) -> str | None:
    """An encoding that the bytes may be in; None for what looks binary."""
    start = data[:4096]
    zeros = [start[place::2].count(0) / max(1, len(start[place::2])) for place in (0, 1)]
    if zeros[1] > 0.3 and zeros[0] < 0.1:
        return "utf-16le"
    if zeros[0] > 0.3 and zeros[1] < 0.1:
        return "utf-16be"
    controls = sum(byte < 32 and byte not in b"\t\n\v\f\r\x1b" for byte in start)
    return None if controls > 0.05 * len(start) or 0 in start else "cp1252"
