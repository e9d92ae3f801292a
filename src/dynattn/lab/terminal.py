"""The printing of all commands: text as it is, progress, and tables that can be read whole at any width.

Nothing that is printed is taken for markup, whatever brackets a path, a name or an error holds. A character that the
terminal's encoding lacks is replaced by one that means the same, as ``x`` for ``×`` and ``-`` for ``−``, or else by
``?``.
"""

from __future__ import annotations

import codecs
import sys
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.measure import Measurement
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from dynattn.lab.progress import Stage

if TYPE_CHECKING:
    from typing import TextIO

_BARS = 8  # so many bars are shown at a time; a study has dozens, more than a terminal has lines
_LINE_SECONDS = 10.0  # the time between two lines about one stage, where nothing can be redrawn
_PLAIN = {
    "−": "-", "–": "-", "—": "-", "‑": "-", "×": "x", "·": "*", "…": "~", "→": ">", "≤": "<", "≥": ">", "σ": "s",
    "ᵀ": "T", "‖": "|", "’": "'", "‘": "'", "“": '"', "”": '"', "\u00a0": " ",
}  # fmt: skip
"""Each character is replaced by exactly one, so that columns stay aligned."""
_ERRORS = "dynattn.plain"


def _tables(to: Console, grid: Grid) -> Iterator[Table]:
    """One table where all columns fit, if need be with less space between them; else several."""
    whole = range(len(grid.columns))
    for space in (2, 1):
        table = _table(grid, whole, space)
        if _width(to, table) <= to.width:
            yield table
            return
    named = list(range(grid.keys))
    chosen, first = list(named), True
    for index in whole[grid.keys :]:
        if len(chosen) > grid.keys and _width(to, _table(grid, [*chosen, index], 2)) > to.width:
            yield _table(grid, chosen, 2, first)
            chosen, first = list(named), False
        chosen.append(index)
    yield _table(grid, chosen, 2, first)


def _table(grid: Grid, chosen: Sequence[int], space: int, titled: bool = True) -> Table:
    table = Table(
        title=Text(printable(grid.title)) if titled else None, title_justify="left", box=SIMPLE_HEAD,
        padding=(0, space - 1, 0, 0), pad_edge=False, show_edge=False,
    )  # fmt: skip
    for index in chosen:
        justify = "left" if index < grid.keys or index in grid.left else "right"
        table.add_column(Text(printable(grid.columns[index])), justify=justify, overflow="fold", vertical="bottom")
    for number, row in enumerate(grid.rows):
        table.add_row(*(_cell(row[index]) for index in chosen), end_section=number in grid.breaks)
    return table


def _width(to: Console, table: Table) -> int:
    """The width that a table takes when no line of it is broken."""
    return Measurement.get(to, to.options.update(max_width=1 << 16), table).maximum


def _cell(content: str | Text) -> Text:
    return content if isinstance(content, Text) else Text(printable(content))


@contextmanager
def _bars(to: Console, redraw: bool) -> Iterator[Stage]:
    columns = (
        TextColumn("{task.description:<32}", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
        TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=to, auto_refresh=redraw) as progress:

        def stage(title: str, steps: int) -> Callable[[], None]:
            for old in progress.tasks[: -(_BARS - 1)]:
                progress.update(old.id, visible=False)
            bar = progress.add_task(printable(title), total=steps)
            if redraw:
                return lambda: progress.advance(bar)
            progress.refresh()
            return lambda: progress.update(bar, advance=1, refresh=True)

        yield stage


def _lines(to: Console) -> Stage:
    def stage(title: str, steps: int) -> Callable[[], None]:
        began = told = time.monotonic()
        done = 0
        say(to, title)

        def advance() -> None:
            nonlocal done, told
            done += 1
            now = time.monotonic()
            if done < steps and now - told >= _LINE_SECONDS:
                told = now
                say(to, f"{title}: {done} of {steps}, {now - began:.0f} s")

        return advance

    return stage


def _plainer(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(_PLAIN.get(c, "?") for c in error.object[error.start : error.end]), error.end


def console(file: TextIO | None = None, quiet: bool = False) -> Console:
    """A console that prints text as it is: no markup, no emoji, no colours for numbers.

    Args:
        file: where to print; standard output by default.
        quiet: print nothing.
    """
    spell_out(sys.stdout if file is None else file)
    return Console(file=file, quiet=quiet, markup=False, highlight=False, emoji=False)


def spell_out(*streams: TextIO) -> None:
    """Let streams write what their encoding lacks by plainer characters, where they would raise an error."""
    codecs.register_error(_ERRORS, _plainer)
    for stream in streams:
        reconfigure = getattr(stream, "reconfigure", None)  # streams that tests put there have none
        if reconfigure is not None:
            reconfigure(errors=_ERRORS)


def printable(text: str) -> str:
    """Text without control characters, which could move the cursor or colour the screen; line ends and tabs stay."""
    return "".join(c if c.isprintable() or c in "\n\t" or ord(c) > 0x9F else f"\\x{ord(c):02x}" for c in text)


def say(to: Console, text: str, style: str = "") -> None:
    """Print a line as it is. It is never broken into several, so that paths and commands can be copied."""
    to.print(Text(printable(text), style), soft_wrap=True)


@dataclass(frozen=True)
class Grid:
    """A table to print.

    Attributes:
        title: above it.
        columns: headings; they may have several lines.
        rows: cells, as many as there are columns; a ``Text`` brings its colour.
        keys: leading columns, which name the rows.
        left: other columns whose cells stand to the left; numbers stand to the right.
        breaks: rows after which a line is left free.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str | Text]]
    keys: int = 1
    left: Collection[int] = ()
    breaks: Collection[int] = ()


def print_grid(to: Console, grid: Grid) -> None:
    """Print a table. Columns that do not fit stand in further tables below it, each with the row's name in front."""
    for table in _tables(to, grid):
        to.print()
        to.print(table)


@contextmanager
def stages(to: Console, redraw: bool = True) -> Iterator[Stage]:
    """Show the stages of some work: as bars in a terminal, else as lines, each written out at once.

    Args:
        to: where to print.
        redraw: let a thread redraw the bars all the time; else they are redrawn as the work advances.
    """
    if to.is_terminal and not to.is_dumb_terminal:
        with _bars(to, redraw) as stage:
            yield stage
    else:
        yield _lines(to)


def quiet_transformers() -> None:
    """Switch Transformers' own progress bars off, which would break ours, and its warnings.

    They speak of what our checks have seen to: "will result in indexing errors" of a text before it is cut.
    """
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
