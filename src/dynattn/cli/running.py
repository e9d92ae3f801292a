"""How every command ends: an error that is expected becomes one line and an exit code, in any terminal.

Code 0: done. Code 1: done, but a check failed. Code 2: an option, a file, a package or the machine prevents it.
"""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import typer

from dynattn.lab.spelling import spelling
from dynattn.lab.terminal import printable, spell_out

FAILED_CHECK = 1
REFUSED = 2

_EXPECTED = (ValueError, TypeError, OverflowError, OSError, ImportError, RuntimeError, MemoryError)


@contextmanager
def running(command: str, extra: str = "cli", names: Mapping[str, str] | None = None) -> Iterator[None]:
    """Run the body of a command. An error that a person can act on is printed to standard error without a traceback.

    Args:
        command: its name.
        extra: what ``pip install 'dynattn[…]'`` takes to bring the packages that the command needs.
        names: of options that this command spells otherwise than ``dynattn compare``, for errors.

    Raises:
        typer.Exit: with code 2, after an error was printed.
    """
    spell_out(sys.stdout, sys.stderr)
    try:
        with _swept(), spelling(names or {}):
            yield
    except (typer.Exit, typer.Abort, typer.BadParameter, BrokenPipeError):
        raise  # typer handles these itself
    except _EXPECTED as error:
        typer.echo(f"error: {printable(_words(command, extra, error))}", err=True)
        raise typer.Exit(REFUSED) from error


@contextmanager
def _swept() -> Iterator[None]:
    """While active, a command that another program ends, or a closed terminal, cleans up as it does after Ctrl-C."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    ends = [end for end in (signal.SIGTERM, getattr(signal, "SIGHUP", None)) if end is not None]
    ends = [end for end in ends if signal.getsignal(end) is signal.SIG_DFL]  # handlers of nohup or of an embedder stay
    for end in ends:
        signal.signal(end, _leave)
    try:
        yield
    finally:
        for end in ends:
            signal.signal(end, signal.SIG_DFL)


def _leave(number: int, _: Any) -> None:
    sys.exit(128 + number)


def _words(command: str, extra: str, error: BaseException) -> str:
    if isinstance(error, ModuleNotFoundError):
        return f"{command} needs more packages ({error}): pip install 'dynattn[{extra}]'"
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{command}: {error.filename}: {error.strerror}"
    if isinstance(error, MemoryError):
        return f"{command}: there must be enough memory: it ran out ({error}); take fewer items or tokens"
    return str(error) or f"{command}: {type(error).__name__}"
