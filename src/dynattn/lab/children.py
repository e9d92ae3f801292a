"""Python modules in processes of their own, that run nothing which happens to lie in the current directory."""

from __future__ import annotations

import sys

# What ``python -m`` puts first on the path is the current directory: a random.py there would be run in place of
# Python's. Option -P does the same, from Python 3.11 on. ``sys`` is built in, so its import looks nowhere.
_RUN = (
    "import sys; sys.path[:] = [place for place in sys.path if place]; import runpy; "
    "runpy.run_module(sys.argv.pop(1), run_name='__main__', alter_sys=True)"
)


def command(module: str, *arguments: str) -> list[str]:
    """What runs a module as ``python -m`` does, with this Python.

    Args:
        module: its name.
        arguments: that it gets.
    """
    return [sys.executable, "-c", _RUN, module, *arguments]
