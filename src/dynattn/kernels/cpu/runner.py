"""Runs the functions of the library, and says what is wrong where one refuses."""

from __future__ import annotations

from typing import NoReturn

from dynattn.kernels.cpu import loader

BAD_PAGE = 4
"""What a function returns where a page is named that there is not."""

_OUT_OF_MEMORY = 2
_ERRORS = {1: "this processor does not run the instruction set asked for", 3: "an argument is out of its range"}


def run(function: str, args: bytes) -> None:
    """Call a function of the library.

    Args:
        function: its name, without ``dynattn_``.
        args: its arguments, packed.

    Raises:
        ImportError: the library is not there.
        MemoryError: no memory for what is packed.
        RuntimeError: the library refused; the text says why.
    """
    status = getattr(loader.library(), f"dynattn_{function}")(args)
    if status != 0:
        refuse(function, status)


def refuse(function: str, status: int) -> NoReturn:
    """Raise the error that ``status``, which ``function`` returned, stands for."""
    if status == _OUT_OF_MEMORY:
        raise MemoryError(f"{function}: no memory for what is packed; use a smaller batch or free memory")
    raise RuntimeError(f"{function}: {_ERRORS.get(status, f'the library returned {status}')}; this is a bug in dynattn")
