"""``python -m dynattn`` puts the current directory in front of everything; here it is taken out, first of all imports.

Else a ``random.py`` that lies there would be executed: PyTorch imports ``random``. Only the process that was started
for dynattn is touched: elsewhere this does nothing. ``python -P -m dynattn`` does the same from Python 3.11.
"""

import sys

_MODULE = __name__.partition(".")[0]


def _started_for_us(argv: list[str], command: list[str]) -> bool:
    """Whether Python was told to run a module of this package, and looks for it now.

    Args:
        argv: ``sys.argv``, which begins with ``-m`` until the module is found.
        command: ``sys.orig_argv``.
    """
    if argv[:1] != ["-m"]:
        return False
    last = command[: len(command) - len(argv) + 1][-1]
    asked = last.partition("m")[2] if last.startswith("-") else last  # as in -mdynattn and -Bmdynattn
    return asked.partition(".")[0] == _MODULE


if _started_for_us(sys.argv, sys.orig_argv) and not getattr(sys.flags, "safe_path", False):
    del sys.path[0]
