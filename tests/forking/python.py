"""The fixture ``forked_python``: Python starts in a hundredth of a second, with PyTorch and Transformers imported."""

from __future__ import annotations

import multiprocessing.spawn
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker
from pathlib import Path

import pytest

_HERE = Path(__file__).parent
_LONGEST_FIRST_LINE = 120  # of a program, which every Linux reads; without a space in the interpreter's name


def _can_serve() -> bool:
    """Where children are waited for by files, which is Linux's alone."""
    try:
        os.close(os.pidfd_open(os.getpid()))
    except (AttributeError, OSError):
        return False
    return " " not in sys.executable and len(sys.executable) < _LONGEST_FIRST_LINE


@pytest.fixture(scope="session")
def fork_server() -> Iterator[str | None]:
    """The path of a program that stands in for Python while this fixture lives; None where nothing can."""
    if not _can_serve():
        yield None
        return
    with tempfile.TemporaryDirectory(prefix="dynattn-forking-") as folder:
        program = Path(folder) / "python"
        program.write_text(f"#!{sys.executable} -IS\n{(_HERE / 'client.py').read_text()}")
        program.chmod(0o755)
        own = ("PYTHONPATH", "PYTHONSAFEPATH")  # of each process
        environment = {name: value for name, value in os.environ.items() if name not in own}
        with subprocess.Popen(
            [sys.executable, _HERE / "server.py", Path(folder) / "socket"], stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, env=environment,
        ) as server:  # fmt: skip
            assert server.stdout is not None
            assert server.stdout.readline() == b"ready\n"
            yield str(program)


@contextmanager
def forking(program: str | None) -> Iterator[None]:
    """For fixtures of a module or a session: what ``forked_python`` does meanwhile, with the program of fork_server."""
    if program is None:
        yield
        return
    resource_tracker.ensure_running()  # it needs no libraries, and outlives the test
    before, spawned = sys.executable, multiprocessing.spawn.get_executable()
    sys.executable = program
    multiprocessing.spawn.set_executable(program)
    try:
        yield
    finally:
        sys.executable = before
        multiprocessing.spawn.set_executable(spawned)


@pytest.fixture
def forked_python(fork_server: str | None) -> Iterator[None]:
    """Processes that a test starts by ``sys.executable``, or that are spawned, are forked from one that has imported
    libraries already (see server.py). Not for tests of what an import does, of the memory that a process takes, or of
    what is left at the moment that SIGKILL has ended one: the fork ends a little later."""
    with forking(fork_server):
        yield
