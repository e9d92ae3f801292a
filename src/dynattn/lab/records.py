"""Files of results: reserved before the work begins, written whole or not at all, read with errors that name them.

Writing needs no package that PyTorch does not need, so that a run on a bare machine keeps what it measured; reading a
record needs pydantic. An array of numbers takes one line of JSON, so that a record is read and compared by its fields.
"""

from __future__ import annotations

import errno
import glob
import json
import os
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from dynattn.paths import work_file, write_text_whole

if TYPE_CHECKING:
    from pydantic import BaseModel

    R = TypeVar("R", bound=BaseModel)

_POINT = 4  # numbers with names that take one line together
_RESERVED = 1 << 20
"""Bytes of disk that are kept for each file while the work goes on. The largest recorded file takes 0.7 MB."""


def dumps(value: Any) -> str:
    """JSON with an entry a line, indented by a blank a level; arrays of numbers, and of a few numbers with
    names, take one line.

    Args:
        value: dictionaries with string keys, lists, tuples, strings, numbers, booleans and None. What is not finite is
            written as Python's ``json`` does: ``Infinity``, ``NaN``.
    """
    return _text(value, "\n")


def write_whole(path: Path, text: str) -> None:
    """Write a text file, and its folder where there is none; a kill or a full disk leaves the file before or this one.

    Args:
        path: the path of the file. What a link points to is written, a device or a pipe is written directly.
        text: all of it, written as UTF-8.

    Raises:
        OSError: the file cannot be written; the text names it and says what to do. The file before is untouched.
    """
    with _explained(path):
        target = _target(path)
        if _is_special(target):
            target.write_text(text, encoding="utf-8")
            return
        write_text_whole(target, text)


def write_json(path: Path, value: Any) -> None:
    """Write :func:`dumps` of a value; see :func:`write_whole`."""
    write_whole(path, dumps(value) + "\n")


def write_record(record: BaseModel, path: Path) -> None:
    """Write a record as JSON; see :func:`write_whole`."""
    write_json(path, record.model_dump(mode="json"))


def read_json(path: Path, remedy: str) -> Any:
    """Read a JSON file.

    Args:
        path: the path of the file.
        remedy: what a person can do where the file is not readable, as the end of a sentence.

    Raises:
        ValueError: there is no such file, it cannot be read, or it is cut short or damaged.
    """
    data = _bytes(path, remedy)
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"read: {path} must hold JSON: it is cut short or damaged ({_short(error)}); {remedy}"
        ) from error


def read_record(kind: type[R], path: Path, remedy: str) -> R:
    """Read a record.

    Args:
        kind: its class.
        path: the path of the file.
        remedy: what a person can do where the file is none, as the end of a sentence.

    Raises:
        ValueError: as :func:`read_json`, or the file holds something else or a record of another version.
    """
    value = read_json(path, remedy)
    return as_record(kind, value, path, remedy)


def as_record(kind: type[R], value: Any, path: Path, remedy: str) -> R:
    """The record that a value read from a file is; see :func:`read_record`, whose errors it raises."""
    from pydantic import ValidationError

    try:
        return kind.model_validate(value)
    except ValidationError as error:
        raise ValueError(f"read: {path} must hold a {kind.__name__}: {reason(error)}; {remedy}") from error


def slug(name: str) -> str:
    """A name as a part of a file's: ``minilm on retrieval`` as ``minilm-on-retrieval``."""
    return re.sub(r"[^\w.-]+", "-", name)


def reason(error: Any) -> str:
    """The first thing that pydantic's ``ValidationError`` tells, in a few words."""
    found = error.errors(include_url=False, include_context=False)
    one = min(found, key=lambda each: each["loc"] != ("schema_version",))  # another version explains the others
    where = ".".join(map(str, one["loc"])) or "the whole"
    if one["loc"] == ("schema_version",):
        return f"it is of version {one['input']!r}, which this dynattn does not read"
    given = repr(one["input"])
    given = given if len(given) <= 40 else given[:40] + "…"
    said = one["msg"][0].lower() + one["msg"][1:]
    return f"{where}: {said}" + ("" if one["type"] == "missing" else f", got {given}")


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """Keep others from working on a file or a folder meanwhile; when this process ends, in whatever way, it is free.

    Args:
        path: the path of the file or folder, which need not exist. Meanwhile a lock lies beside it, ``.<name>.lock``.

    Raises:
        ValueError: another process, or this one, is at work there.
        OSError: the lock cannot be written.
    """
    from filelock import FileLock, Timeout  # torch depends on it

    target = _target(path)
    with _explained(path):
        target.parent.mkdir(parents=True, exist_ok=True)
        claimed = target.with_name(f".{target.name}.lock")
        claimed.open("ab").close()  # FileLock takes a folder that may not be written for one that is taken
        lock = FileLock(claimed)
        try:
            lock.acquire(timeout=0)
        except Timeout as error:
            raise ValueError(
                f"records: one command at a time writes to a place: another is at work in {path}; wait for it, or "
                "give another --output"
            ) from error
    try:
        yield
    finally:
        with suppress(OSError):  # Windows removes no open file: there it stays
            claimed.unlink()  # while it is still held; FileLock refuses a lock whose file has gone
        lock.release()


@contextmanager
def reserve(*paths: Path) -> Iterator[None]:
    """Make sure, before the work, that files can be written after it; and keep others from them meanwhile.

    Folders are made, and a little disk is held until :func:`write_whole` takes it. Existing files stay as they are.

    Args:
        paths: files that will be written.

    Raises:
        ValueError: another command is at work on one of them.
        OSError: one of them cannot be written: a folder in its place, no permission, a full disk.
    """
    with ExitStack() as held:
        for path in dict.fromkeys(map(_target, paths)):
            held.enter_context(_reserved(path))
        yield


@contextmanager
def _reserved(path: Path) -> Iterator[None]:
    if _is_special(path):
        with _explained(path):
            _probe(path)
        yield
        return
    with alone(path):
        work = work_file(path)
        try:
            with _explained(path):
                for left in path.parent.glob(f".{glob.escape(path.name)}-*[0-9]"):  # by kills: nobody else is at work
                    left.unlink()
                if path.is_dir():
                    raise IsADirectoryError(None, "there is a folder of this name")
                if path.exists():
                    path.open("r+b").close()
                _fill(work)
            yield
        finally:
            work.unlink(missing_ok=True)


def _fill(work: Path) -> None:
    """Take the disk's blocks: by the system's call, or by zeros where the system or the disk has none."""
    with work.open("wb") as file:
        try:
            os.posix_fallocate(file.fileno(), 0, _RESERVED)
        except AttributeError:
            file.write(bytes(_RESERVED))
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
                raise
            file.write(bytes(_RESERVED))


def _probe(path: Path) -> None:
    """Write a line end to a device or a pipe, without waiting for a reader that is not there."""
    descriptor = os.open(path, os.O_WRONLY | getattr(os, "O_NONBLOCK", 0))
    try:
        os.write(descriptor, b"\n")
    finally:
        os.close(descriptor)


def _target(path: Path) -> Path:
    """What links lead to: a link is to be kept."""
    return Path(os.path.realpath(path))


def _is_special(path: Path) -> bool:
    """Whether something other than a file or a folder is there, which a file must not take the place of."""
    return os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path)


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """What the system refuses, with the file and a remedy."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise type(error)(
            f"write: {path} must be a file that can be written: {reason}; free the disk or the name, or give another "
            "--output"
        ) from error


def _bytes(path: Path, remedy: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ValueError(f"read: {path} must be a file that can be read: {error.strerror}; {remedy}") from error


def _short(error: Exception) -> str:
    """The reason without the data: a JSON error tells line and column, a decoding error the byte."""
    return "nested too deeply" if isinstance(error, RecursionError) else str(error).splitlines()[0]


def _text(value: Any, newline: str) -> str:
    """A value whose lines begin with ``newline``: a line end and the indentation."""
    inner = newline + " "
    if isinstance(value, dict) and value and not _is_point(value):
        names = (json.dumps(str(name), ensure_ascii=False) for name in value)
        entries = (f"{inner}{name}: {_text(each, inner)}" for name, each in zip(names, value.values(), strict=True))
        return "{" + ",".join(entries) + newline + "}"
    if isinstance(value, (list, tuple)) and not all(_is_number(each) or _is_point(each) for each in value):
        return "[" + ",".join(inner + _text(each, inner) for each in value) + newline + "]"
    return json.dumps(value, ensure_ascii=False)


def _is_number(value: Any) -> bool:
    return value is None or isinstance(value, (int, float))


def _is_point(value: Any) -> bool:
    """Whether this is a few numbers with names, as a step and its loss, or a median and its quartiles."""
    return isinstance(value, dict) and 0 < len(value) <= _POINT and all(map(_is_number, value.values()))
