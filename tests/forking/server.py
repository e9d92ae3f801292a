"""A process that has imported what takes long, and forks where a test starts Python: `server.py SOCKET`.

PyTorch and Transformers take five seconds to import, many times what most tests of other processes do. This process
imports them, computes nothing, so that it has one thread, and forks; the child takes up the files, the environment and
the arguments of whoever asks (see client.py), imports dynattn itself, and runs. It ends with its standard input.
"""

from __future__ import annotations

import atexit
import fcntl
import gc
import importlib
import io
import marshal
import multiprocessing.spawn
import os
import random
import runpy
import selectors
import signal
import socket
import sys
import threading
import types
from array import array
from contextlib import suppress
from typing import Any, NamedTuple

_LIBRARIES = (
    "torch", "torch._dynamo", "torch.export", "torch.distributed", "transformers", "transformers.modeling_utils",
    "transformers.models.auto.modeling_auto", "transformers.models.bert.modeling_bert",
    "transformers.models.llama.modeling_llama", "accelerate", "safetensors.torch", "scipy.stats", "matplotlib.figure",
    "typer", "rich.table", "pydantic", "jinja2", "pytest",
)  # fmt: skip
# What Python and libraries read when they start: whoever has other values gets a Python of its own.
_READ_AT_THE_START = ("PYTHON", "HOME", "XDG_", "MPL", "HF_", "TRANSFORMERS_")
_TAKEN_UP = {"PYTHONPATH", "PYTHONSAFEPATH"}
_FILES_AT_MOST = 250


class _Request(NamedTuple):
    executable: str
    arguments: list[str]
    unbuffered: bool
    environment: dict[str, str]
    folder: str
    mask: int
    ignored: list[int]
    leads: bool
    files: list[int]


def _received(client: socket.socket) -> tuple[_Request, list[int]]:
    """A request, and its files under the numbers that they have here."""
    length, rights, _, _ = client.recvmsg(8, socket.CMSG_SPACE(4 * _FILES_AT_MOST))
    here = array("i")
    for _, _, data in rights:
        here.frombytes(data[: len(data) - len(data) % 4])
    data = bytearray()
    while len(data) < int.from_bytes(length, "little"):
        data += client.recv(1 << 16)
    return _Request(*marshal.loads(data)), list(here)


def _can_be_forked(request: _Request, begun: dict[str, str]) -> bool:
    """Python's own options change how it begins, and so do variables that it and libraries read at their start."""
    first = request.arguments[0] if request.arguments else "-"
    if first not in ("-c", "-m") and (first[:1] == "-" or not os.path.isfile(os.path.join(request.folder, first))):
        return False
    read = {name for name in begun | request.environment if name.startswith(_READ_AT_THE_START)} - _TAKEN_UP
    return all(begun.get(name) == request.environment.get(name) for name in read)


def _take(here: list[int], files: list[int]) -> None:
    """The files of the request under its numbers, and no others."""
    above = max([2, *here, *files]) + 1
    moved = [fcntl.fcntl(each, fcntl.F_DUPFD, above) for each in here]
    os.closerange(0, above)
    for each, number in zip(moved, files, strict=True):
        os.dup2(each, number)
        os.close(each)


def _stream(number: int, errors: str, unbuffered: bool = False) -> Any:
    """As Python opens it, or None where the file is closed."""
    with suppress(OSError):
        file: Any = io.FileIO(number, "w" if number else "r", closefd=False)
        if not unbuffered:
            file = io.BufferedWriter(file) if number else io.BufferedReader(file)
        return io.TextIOWrapper(file, errors=errors, line_buffering=number == 2, write_through=unbuffered)
    return None


def _become(request: _Request, here: list[int], base: list[str]) -> None:
    """What Python does before the first line of a program."""
    _take(here, request.files)
    unbuffered = request.unbuffered or bool(request.environment.get("PYTHONUNBUFFERED"))
    sys.stdin = sys.__stdin__ = _stream(0, "strict")  # anew, as streams know whether they can seek
    sys.stdout = sys.__stdout__ = _stream(1, "strict", unbuffered)
    sys.stderr = sys.__stderr__ = _stream(2, "backslashreplace", unbuffered)
    if request.leads:
        os.setsid()
    for each in (signal.SIGHUP, signal.SIGQUIT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGCHLD):
        signal.signal(each, signal.SIG_IGN if each in request.ignored else signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN if signal.SIGINT in request.ignored else signal.default_int_handler)
    os.environ.clear()
    os.environ.update(request.environment)
    os.umask(request.mask)
    os.chdir(request.folder)
    random.seed()
    threads = request.environment.get("OMP_NUM_THREADS")
    importlib.import_module("torch").set_num_threads(int(threads) if threads else os.cpu_count() or 1)
    sys.executable = request.executable
    multiprocessing.spawn.set_executable(request.executable)
    sys.orig_argv[:] = [request.executable, *request.arguments]
    first, *rest = request.arguments
    sys.argv[:] = ["-c", *rest[1:]] if first == "-c" else ["-m", *rest[1:]] if first == "-m" else [first, *rest]
    own = {"-c": "", "-m": request.folder}.get(first, os.path.dirname(os.path.realpath(first)))
    safe = sys.version_info >= (3, 11) and request.environment.get("PYTHONSAFEPATH")
    paths = filter(None, request.environment.get("PYTHONPATH", "").split(os.pathsep))
    sys.path[:] = [*([] if safe else [own]), *map(os.path.abspath, paths), *base]


def _run(arguments: list[str]) -> None:
    main = sys.modules["__main__"] = types.ModuleType("__main__")
    main.__dict__["__builtins__"] = __builtins__
    if arguments[0] == "-m":
        runpy._run_module_as_main(arguments[1])  # pyright: ignore[reportAttributeAccessIssue]
    elif arguments[0] == "-c":
        exec(compile(arguments[1], "<string>", "exec"), main.__dict__)
    else:
        main.__file__ = arguments[0]
        with open(arguments[0], "rb") as file:
            exec(compile(file.read(), arguments[0], "exec"), main.__dict__)


def _status(arguments: list[str]) -> int:
    """Run to the end, as Python does; returns the exit status, negative for the signal to end by."""
    status = 0
    try:
        _run(arguments)
    except SystemExit as end:
        if end.code is not None and not isinstance(end.code, int):
            print(end.code, file=sys.stderr)
        status = 0 if end.code is None else end.code if isinstance(end.code, int) else 1
    except BaseException as error:
        frames = error.__traceback__
        while frames and frames.tb_frame.f_code.co_filename == __file__:
            frames = frames.tb_next
        sys.excepthook(type(error), error.with_traceback(frames), frames)
        status = -signal.SIGINT if isinstance(error, KeyboardInterrupt) else 1
    threading._shutdown()  # pyright: ignore[reportAttributeAccessIssue]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, AttributeError):
            stream.flush()
    return status


def _child(request: _Request, here: list[int], base: list[str]) -> None:
    """Never returns."""
    status = 1
    try:
        _become(request, here, base)
        status = _status(request.arguments)
    except BaseException as error:
        sys.excepthook(type(error), error, error.__traceback__)
    if status < 0:
        signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    os._exit(status & 0xFF)


class _Server:
    """Waits for requests, for signals to pass on, and for the ends of its children and of their clients."""

    def __init__(self, path: str, begun: dict[str, str]) -> None:
        self._begun = begun
        self._base = sys.path[1:]  # less this file's folder
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(path)
        self._listener.listen(64)
        self._events = selectors.DefaultSelector()
        self._events.register(self._listener, selectors.EVENT_READ, self._accept)
        self._events.register(0, selectors.EVENT_READ, self._end)
        self._clients: dict[int, socket.socket] = {}

    def run(self) -> None:
        while True:
            for key, _ in self._events.select():
                key.data()

    def _accept(self) -> None:
        client, _ = self._listener.accept()
        request, here = _received(client)
        if not _can_be_forked(request, self._begun):
            client.send(b"n")
            client.close()
        else:
            child = os.fork()
            if child == 0:
                for each in (client, self._listener, self._events, *self._clients.values()):
                    each.close()
                _child(request, here, self._base)
            self._watch(child, client, request.leads)
            client.send(b"y")
        for each in here:
            os.close(each)

    def _watch(self, child: int, client: socket.socket, leads: bool) -> None:
        handle = os.pidfd_open(child)
        self._clients[child] = client

        def told() -> None:
            if child not in self._clients:  # it ended meanwhile
                return
            number = client.recv(1)
            with suppress(ProcessLookupError):
                if number:
                    os.kill(child, number[0])
                else:  # the client was killed
                    self._events.unregister(client)
                    (os.killpg if leads else os.kill)(child, signal.SIGKILL)

        def ended() -> None:
            _, status = os.waitpid(child, 0)
            self._events.unregister(handle)
            os.close(handle)
            with suppress(KeyError):
                self._events.unregister(client)
            with suppress(OSError):
                client.send(status.to_bytes(4, "little"))
            self._clients.pop(child).close()

        self._events.register(handle, selectors.EVENT_READ, ended)
        self._events.register(client, selectors.EVENT_READ, told)

    def _end(self) -> None:
        for child in self._clients:
            with suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        for child in self._clients:
            os.waitpid(child, 0)
        sys.exit()


def main() -> None:
    """Import, say so, and serve."""
    begun = dict(os.environ)  # libraries add to it
    for name in _LIBRARIES:
        with suppress(ImportError):
            importlib.import_module(name)
    server = _Server(sys.argv[1], begun)
    gc.collect()
    gc.freeze()
    print("ready", flush=True)
    server.run()


if __name__ == "__main__":
    main()
