"""Stands in for Python: asks the server for a process that has imported libraries already, and ends as that one does.

The fixture ``forked_python`` writes this file after a line ``#!PYTHON -IS`` into the folder of the server's socket.
Where the server cannot do what is asked for, Python itself is started.
"""

from __future__ import annotations

import marshal
import os
import signal
import socket
import sys
from array import array

_PASSED_ON = (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)


def _inherited() -> list[int]:
    """What this process was started with, and nothing that it opened itself."""
    found = []
    for number in map(int, os.listdir("/proc/self/fd")):
        try:
            if os.get_inheritable(number):
                found.append(number)
        except OSError:  # that of the list itself
            continue
    return found


def _ask(server: socket.socket, arguments: list[str], unbuffered: bool) -> bool:
    """Whether there is a process now. It has this one's files, environment, folder and ignored signals."""
    files = _inherited()
    ignored = [int(each) for each in _PASSED_ON if signal.getsignal(each) == signal.SIG_IGN]
    os.umask(mask := os.umask(0))
    leads = os.getsid(0) == os.getpid()
    data = marshal.dumps(
        (sys.argv[0], arguments, unbuffered, dict(os.environ), os.getcwd(), mask, ignored, leads, files)
    )
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", files).tobytes())]
    server.sendmsg([len(data).to_bytes(8, "little")], rights)
    server.sendall(data)
    if server.recv(1) != b"y":
        return False
    for each in _PASSED_ON:
        if each not in ignored:
            signal.signal(each, lambda number, _: server.send(bytes([number])))
    for each in files:
        os.close(each)  # the ends of pipes are the other process's alone
    return True


def main() -> None:
    """Ask, wait, and end."""
    given = sys.argv[1:]
    first = next((place for place, each in enumerate(given) if each not in ("-B", "-u")), len(given))
    server = socket.socket(socket.AF_UNIX)
    try:
        server.connect(os.path.join(os.path.dirname(sys.argv[0]), "socket"))
        there = _ask(server, given[first:], "-u" in given[:first])  # to write no bytecode is as good as to write it
    except OSError:
        there = False
    if not there:
        os.execv(sys.executable, [sys.executable, *given])
    answer = server.recv(4)
    if not answer:
        sys.exit("the server of forks has ended")
    status = int.from_bytes(answer, "little")
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        if number != signal.SIGKILL:
            signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
    os._exit(os.waitstatus_to_exitcode(status) & 0xFF)


if __name__ == "__main__":
    main()
