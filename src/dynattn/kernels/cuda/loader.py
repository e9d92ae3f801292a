"""Compiles kernels at their first use, and keeps them on disk.

NVRTC compiles one instantiation of a template, for one architecture, in a second or two; later calls, in any process,
read it from ``cuda`` in :func:`dynattn.paths.cache_home`. An entry's key covers the sources, the options, the
architecture, the instantiation and the version of NVRTC. Several processes at once are safe: a file appears whole or
not at all, and whoever comes second replaces it by equal code.

Neither a GPU nor a driver is needed to compile.
"""

from __future__ import annotations

import io
import re
from contextlib import suppress
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from dynattn.kernels.cuda.variants import Instantiation
from dynattn.paths import cache_home

REMEDY = "pip install 'dynattn[cuda]'"

_FOLDER = Path(__file__).parent
_INCLUDE = re.compile(r'^#include "(\w+\.cuh)"$', re.MULTILINE)
_ARCH = re.compile(r"sm_(\d+)[af]?")
_OLDEST = 80  # the first architecture that has mma.sp


class Compiled(NamedTuple):
    """The machine code of one kernel.

    Attributes:
        symbol: the kernel's name in the code.
        cubin: the code, as the driver loads it and ``cuobjdump`` reads it.
        log: the compiler's output, with registers and spills; empty where the code came from the disk.
        kept: whether the code is on the disk now, for the next process.
    """

    symbol: str
    cubin: bytes
    log: str = ""
    kept: bool = True


@cache
def missing() -> str | None:
    """Why nothing can be compiled here, with the remedy; None where it can."""
    try:
        utils = import_module("cuda.core.utils")
        nvrtc = import_module("cuda.bindings.nvrtc")
    except ImportError as error:
        return f"cuda-core does not import ({error}); {REMEDY}"
    if not hasattr(utils, "FileStreamProgramCache"):
        return f"cuda-core {import_module('cuda.core').__version__} has no cache of programs; {REMEDY}"
    try:
        nvrtc.nvrtcVersion()
    except Exception as error:  # the type differs between releases of cuda-bindings
        first_line = str(error).strip().splitlines()[0]
        return f"NVRTC, the compiler, does not load ({first_line}); {REMEDY}"
    return None


def nvrtc_version() -> tuple[int, int]:
    """The version of the NVRTC that :func:`missing` found, as (major, minor)."""
    _, major, minor = import_module("cuda.bindings.nvrtc").nvrtcVersion()
    return major, minor


def nvrtc_architectures() -> tuple[int, ...]:
    """The architectures that the NVRTC at hand compiles for: 80, 90, …"""
    _, architectures = import_module("cuda.bindings.nvrtc").nvrtcGetSupportedArchs()
    return tuple(architectures)


def compile_variant(variant: Instantiation, arch: str, *, cached: bool = True) -> Compiled:
    """Machine code of ``variant`` for ``arch``.

    Args:
        variant: the instantiation.
        arch: ``sm_80`` or later, as NVRTC takes it; ``sm_90a`` for the ``wgmma`` kernels.
        cached: take it from the disk where it is there, and leave it there.

    Raises:
        ImportError: cuda-core or NVRTC is missing; the text has the remedy.
        ValueError: ``arch`` cannot run the kernel.
        RuntimeError: the compiler refused; the text has its log.
    """
    check_arch(variant, arch)
    reason = missing()
    if reason is not None:
        raise ImportError(f"compile_variant: {reason}")
    return _compile(variant, arch, _disk() if cached else None)


def check_arch(variant: Instantiation, arch: str) -> None:
    """Raise ValueError where ``arch`` is no architecture that runs the kernel."""
    match = _ARCH.fullmatch(arch)
    if match is None:
        raise ValueError(f"compile_variant: arch must look like sm_80 or sm_90a: got {arch!r}")
    if int(match[1]) < _OLDEST:
        raise ValueError(f"compile_variant: arch must be sm_{_OLDEST} or later: got {arch}; older ones lack mma.sp")
    if variant.kernel.endswith("wgmma") and arch != "sm_90a":
        raise ValueError(f"compile_variant: the wgmma kernel needs sm_90a: got {arch}; take the mma kernel")


def cache_folder() -> Path:
    """Where compiled kernels are kept."""
    return cache_home() / "cuda"


def _compile(variant: Instantiation, arch: str, disk: Any) -> Compiled:
    core, utils = import_module("cuda.core"), import_module("cuda.core.utils")
    source, expression = _source(variant.source), variant.name_expression
    options = core.ProgramOptions(name=variant.source, arch=arch, std="c++17", ptxas_options=["-v"])
    key = b""
    if disk is not None:
        key = utils.make_program_cache_key(
            code=source, code_type="c++", options=options, target_type="cubin", name_expressions=(expression,)
        )
        # cuda-core stores bytes and forgets the mangled name, so an entry is the name, a zero byte and the code
        symbol, _, cubin = (disk.get(key) or b"").partition(b"\0")
        if cubin:
            return Compiled(symbol.decode(), cubin)
    log = io.StringIO()
    try:
        code = core.Program(source, "c++", options).compile("cubin", name_expressions=(expression,), logs=log)
    except Exception as error:
        raise RuntimeError(
            f"compile_variant: NVRTC {'.'.join(map(str, nvrtc_version()))} refused {expression} for {arch}: {error}"
        ) from error
    symbol, cubin = code.symbol_mapping[expression], bytes(code.code)
    symbol = symbol.decode() if isinstance(symbol, bytes) else symbol
    kept = False
    if disk is not None:
        with suppress(OSError):  # a full disk: compiled again next time
            disk[key] = symbol.encode() + b"\0" + cubin
            kept = True
    return Compiled(symbol, cubin, log.getvalue(), kept)


def _source(name: str) -> str:
    """A source with its headers pasted in, so that the key covers them and no path: caches can be moved."""
    pasted: set[str] = set()

    def read(name: str) -> str:
        pasted.add(name)
        text = (_FOLDER / name).read_text(encoding="utf-8").replace("#pragma once", "")

        def paste(include: re.Match[str]) -> str:
            if include[1] in pasted:
                return ""
            next_line = text.count("\n", 0, include.start()) + 2  # the compiler's messages count as the file does
            return f'{read(include[1])}\n#line {next_line} "{name}"'

        return f'#line 1 "{name}"\n{_INCLUDE.sub(paste, text)}'

    return read(name)


def _disk() -> Any:
    """The cache on disk, or None where the folder cannot be written: then every process compiles for itself."""
    try:
        return import_module("cuda.core.utils").FileStreamProgramCache(cache_folder())
    except OSError:
        return None
