"""Finds and loads the compiled library, and the pool of threads that it borrows."""

from __future__ import annotations

import ctypes
import os
import sys
from functools import cache
from pathlib import Path

import torch

from dynattn.kernels.cpu.arguments import BLOCK_FORWARD, LINEAR, NM_BACKWARD, NM_TEXTS, ROW_FORWARD, SKIP_FORWARD

_INTERFACE = 6


def _path() -> Path:
    return Path(__file__).parent / "libdynattn_cpu.so"


@cache
def library() -> ctypes.CDLL:
    """The library, its functions declared.

    Raises:
        ImportError: it is not there, does not load, or is of another version.
    """
    path = _path()
    if not path.exists():
        raise ImportError(
            f"dynattn: the compiled kernels are missing: {path.name} is not in {path.parent}; install dynattn with "
            "`pip install .` where GCC or Clang is present"
        )
    try:
        found = ctypes.CDLL(str(path))
    except OSError as error:
        raise ImportError(
            f"dynattn: the compiled kernels do not load: {error}; install dynattn again with `pip install .`"
        ) from error
    size = sum(
        structure.size for structure in (NM_BACKWARD, ROW_FORWARD, SKIP_FORWARD, BLOCK_FORWARD, NM_TEXTS, LINEAR)
    )
    if not hasattr(found, "dynattn_interface") or (
        (found.dynattn_interface(), found.dynattn_args_bytes()) != (_INTERFACE, size)
    ):
        raise ImportError(
            f"dynattn: the compiled kernels must be of this version: {path} was built from another; install dynattn "
            "again with `pip install .`"
        )
    functions = (
        "nm_forward", "nm_texts", "row_forward", "skip_forward", "choose_blocks", "block_forward", "nm_backward",
        "linear_choice", "linear_rows", "linear_outputs", "linear_nm_weight",
    )  # fmt: skip
    for function in (getattr(found, f"dynattn_{name}") for name in functions):
        function.argtypes, function.restype = [ctypes.c_char_p], ctypes.c_int32
    found.dynattn_isa_refusal.argtypes, found.dynattn_isa_refusal.restype = [ctypes.c_int32], ctypes.c_char_p
    found.dynattn_tile_disagreement.argtypes = [ctypes.c_int32]
    found.dynattn_tile_disagreement.restype = ctypes.c_char_p
    found.dynattn_fma_peak.argtypes = [ctypes.c_int32, ctypes.c_int32, ctypes.c_double, ctypes.c_void_p]
    found.dynattn_fma_peak.restype = ctypes.c_double
    return found


@cache
def parallel() -> int | None:
    """Address of GOMP_parallel in the OpenMP runtime that torch has loaded; None where there is none to be found.

    A runtime of our own would be a second pool of threads, which spins against torch's for the same cores.
    """
    if not sys.platform.startswith("linux"):
        return None
    bundled = [
        str(path)
        for pattern in ("libgomp*.so*", "libomp*.so*", "libiomp*.so*")
        for path in (Path(str(torch.__file__)).parent / "lib").glob(pattern)
    ]
    for name in (*bundled, "libgomp.so.1", "libomp.so", "libiomp5.so"):
        try:  # RTLD_NOLOAD: only a runtime that is in this process already
            runtime = ctypes.CDLL(name, mode=os.RTLD_NOLOAD | os.RTLD_NOW)
        except OSError:
            continue
        if hasattr(runtime, "GOMP_parallel"):
            return ctypes.cast(runtime.GOMP_parallel, ctypes.c_void_p).value
    return None


def is_available() -> bool:
    """True where the library is there and loads."""
    return unavailable_reason() is None


@cache
def unavailable_reason() -> str | None:
    """Why the kernels cannot run, or None where they can."""
    try:
        library()
    except ImportError as error:
        return str(error)
    return None
