"""How every command ends: expected errors become a line and an exit code, in any terminal.

0: done. 1: done, and a check failed. 2: an option, a file, a package or the machine does not allow it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import typer

from dynattn.lab.terminal import printable, spell_out

FAILED_CHECK = 1
REFUSED = 2

_EXPECTED = (ValueError, TypeError, OverflowError, OSError, ImportError, RuntimeError, MemoryError)


@contextmanager
def running(command: str, extra: str = "cli") -> Iterator[None]:
    """Run the body of a command; an error that a person can act on is printed to standard error, without a traceback.

    Args:
        command: its name.
        extra: what ``pip install 'dynattn[…]'`` takes to bring the packages that the command needs.

    Raises:
        typer.Exit: with code 2, after an error was printed.
    """
    spell_out(sys.stdout, sys.stderr)
    try:
        yield
    except (typer.Exit, typer.Abort, typer.BadParameter, BrokenPipeError):
        raise  # typer ends these itself
    except _EXPECTED as error:
        typer.echo(f"error: {printable(_words(command, extra, error))}", err=True)
        raise typer.Exit(REFUSED) from error


def _words(command: str, extra: str, error: BaseException) -> str:
    if isinstance(error, ModuleNotFoundError):
        return f"{command} needs more packages ({error}): pip install 'dynattn[{extra}]'"
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{command}: {error.filename}: {error.strerror}"
    if isinstance(error, MemoryError):
        return f"{command}: there must be enough memory: it ran out ({error}); take fewer items or tokens"
    return str(error) or f"{command}: {type(error).__name__}"
