"""The results of a command: a page and a record of the same name, and a table that is printed in any case."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from dynattn.lab.records import slug
from dynattn.lab.terminal import say

if TYPE_CHECKING:
    from rich.console import Console


def files(command: str, name: str, output: Path) -> tuple[Path, Path]:
    """The page and the record of a command, ``<command>-<name>.html`` and ``.json``.

    Args:
        command: its name.
        name: the name of what it worked on.
        output: their folder.
    """
    stem = f"{command}-{slug(name)}"
    return output / f"{stem}.html", output / f"{stem}.json"


@contextmanager
def shown(show: Callable[[], None], console: Console, report: Path, figures: Path | None = None) -> Iterator[None]:
    """Write files in the body; what was measured is printed afterwards, whether they could be written or not.

    Where they were written, the last lines say where they lie.

    Args:
        show: prints what was measured.
        console: where to print.
        report: the page.
        figures: the record, for commands that write one.
    """
    try:
        yield
    finally:
        show()
    say(console, f"\nreport  {report}" + ("" if figures is None else f"\nfigures {figures}"))
