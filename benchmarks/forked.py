"""A process of its own for each piece of work, made by a fork: what was imported before costs nothing again.

A piece that crashes, or takes more than its share of the processor, costs itself alone; and nothing that it leaves
behind in memory reaches the next. The share is counted in seconds of the processor, so that a busy machine changes
no result.
"""

from __future__ import annotations

import multiprocessing
import resource
import signal
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any


def each(
    work: Callable[[Any], Any], items: Sequence[Any], failed: Callable[[Any, str], Any], *, jobs: int, seconds: int
) -> Iterator[Any]:
    """The results of ``work`` for each of ``items``, in the order in which they are done.

    Args:
        work: runs in the process of its own; what it returns is pickled. When its time is over, ``TimeoutError`` is
            raised in it.
        items: what it is called with.
        failed: makes the result for an item whose process died or took more than twice its time, from the item and
            words.
        jobs: how many processes run at a time.
        seconds: of the processor, for each item.
    """
    context = multiprocessing.get_context("fork")
    todo = list(reversed(items))
    running: dict[Connection, tuple[Any, Any]] = {}
    try:
        while todo or running:
            while todo and len(running) < jobs:
                item = todo.pop()
                ours, theirs = context.Pipe(duplex=False)
                process = context.Process(target=_limited, args=(work, item, theirs, seconds), daemon=True)
                process.start()
                theirs.close()
                running[ours] = (item, process)
            for ready in wait(list(running)):
                assert isinstance(ready, Connection)
                item, process = running.pop(ready)
                try:
                    found = ready.recv()
                except EOFError:
                    process.join()
                    found = failed(item, f"the process ended with code {process.exitcode}")
                process.join()
                yield found
    finally:
        for _, process in running.values():
            process.kill()


def _limited(work: Callable[[Any], Any], item: Any, answer: Connection, seconds: int) -> None:
    def late(*_: Any) -> None:
        signal.signal(signal.SIGXCPU, signal.SIG_IGN)
        raise TimeoutError(f"takes more than {seconds} s of the processor")

    signal.signal(signal.SIGXCPU, late)
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, 2 * seconds))
    answer.send(work(item))
