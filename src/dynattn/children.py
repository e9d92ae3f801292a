"""Processes that this one starts: they import nothing from the current directory, and they end when they are told to.

``python -m module`` and ``python -c`` put the current directory in front of everything, so a ``random.py`` that lies
there would be executed. Python 3.11 leaves it out where ``PYTHONSAFEPATH`` is set; Python 3.10 cannot. So a module is
started by a line that takes the directory out before it imports anything, and workers of 3.10 are started in the root
folder, from which they come back.
What ``PYTHONPATH`` names is found as ever.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from typing import Any

# ``sys`` is built in, so that its import looks nowhere.
_RUN = (
    "import sys; sys.path[:] = [place for place in sys.path if place]; import runpy; "
    "runpy.run_module(sys.argv.pop(1), run_name='__main__', alter_sys=True)"
)
_SAFE_PATH = "PYTHONSAFEPATH"


def _begin(directory: str, begin: Callable[..., None] | None, arguments: tuple[Any, ...]) -> None:
    os.chdir(directory)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if begin is not None:
        begin(*arguments)


def _end_with_parent() -> None:
    """End with the parent. A worker would wait for its next call for ever when its parent was killed."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


@contextmanager
def _deaf() -> Iterator[None]:
    """Processes that are started meanwhile do not listen to Ctrl-C: this one ends them."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def command(module: str, *arguments: str) -> list[str]:
    """What starts a module as ``python -m`` does, without the current directory among the places for imports.

    Args:
        module: its name.
        arguments: that it gets.
    """
    return [sys.executable, "-c", _RUN, module, *arguments]


@contextmanager
def safe_start(elsewhere: bool = sys.version_info < (3, 11)) -> Iterator[None]:
    """Processes that are started meanwhile leave the current directory out.

    Args:
        elsewhere: start them in the root folder: where Python cannot leave the directory out, or a library puts it in.
    """
    here, before = os.getcwd(), os.environ.get(_SAFE_PATH)
    os.environ[_SAFE_PATH] = "1"
    if elsewhere:
        os.chdir(os.path.abspath(os.sep))
    try:
        yield
    finally:
        os.chdir(here)
        if before is None:
            del os.environ[_SAFE_PATH]
        else:
            os.environ[_SAFE_PATH] = before


class Pool:
    """Processes that work on calls, started anew (spawned): a forked one inherits torch's threads but not their state.

    An error or Ctrl-C in the body of its ``with`` ends them at once, in the midst of a call too; they themselves do not
    listen to Ctrl-C, which a terminal sends to all.

    Args:
        workers: how many at most.
        begin: called in each as it starts.
        arguments: the arguments of ``begin``.
    """

    def __init__(self, workers: int, begin: Callable[..., None] | None = None, arguments: tuple[Any, ...] = ()) -> None:
        self._others = set(multiprocessing.active_children())
        here = os.getcwd()
        with safe_start(), _deaf():  # the process that tracks what is shared is started here
            self._pool = ProcessPoolExecutor(
                workers, multiprocessing.get_context("spawn"), initializer=_begin, initargs=(here, begin, arguments)
            )

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            for child in set(multiprocessing.active_children()) - self._others:
                child.terminate()
        self._pool.shutdown(wait=True, cancel_futures=True)

    def submit(self, calls: list[tuple[Any, ...]]) -> list[Any]:
        """Begin calls: each a function and its arguments; returns their futures."""
        with safe_start(), _deaf():
            return [self._pool.submit(*call) for call in calls]
