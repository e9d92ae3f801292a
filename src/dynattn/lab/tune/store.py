"""What a run has found so far, in one file: a run that was killed goes on with the same settings and loses nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from dynattn.lab.records import read_json, write_json

_REMEDY = "remove it, or give another --output"


class Store:
    """Results by name, written whole after each.

    Args:
        path: the path of the file.
        key: digest of what decides the results, the code that makes them included; a file of another key is begun
            anew.

    Attributes:
        resumed: whether there was a file of this key.
        other: whether there was one of another key, which is not taken up.

    Raises:
        ValueError: the file is damaged.
    """

    def __init__(self, path: Path, key: str) -> None:
        self._path, self._key = path, key
        self._found: dict[str, Any] = {}
        self.other = False
        if path.exists():
            there = read_json(path, _REMEDY)
            if not isinstance(there, dict) or not isinstance(there.get("found"), dict):
                raise ValueError(f"tune: {path} must hold the stages of a run: it holds something else; {_REMEDY}")
            self.other = there.get("key") != key
            if not self.other:
                self._found = there["found"]
        self.resumed = bool(self._found)

    @property
    def told(self) -> str | None:
        """What became of an earlier file, in words; None where there was none."""
        if self.other:
            return (
                f"{self._path} is of other settings, texts, weights or threads, another machine or another version of "
                "the code: it is begun anew"
            )
        return f"going on with {self._path}, which holds {len(self._found)} results" if self.resumed else None

    def has(self, name: str) -> bool:
        """Whether something was found under a name."""
        return name in self._found

    def get(self, name: str) -> Any | None:
        """What was found under a name; None where nothing was."""
        return self._found.get(name)

    def put(self, name: str, found: Any) -> None:
        """Keep what was found under a name.

        Args:
            name: the name of the result.
            found: what JSON can hold.
        """
        self._found[name] = found
        write_json(self._path, {"key": self._key, "found": self._found})

    def once(self, name: str, find: Callable[[], Any]) -> Any:
        """What was found under a name, else what ``find`` gives, which is written.

        Args:
            name: the name of the result.
            find: gives what JSON can hold.
        """
        if name not in self._found:
            self.put(name, find())
        return self._found[name]
