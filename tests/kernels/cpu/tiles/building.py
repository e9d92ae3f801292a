"""Compiles the tile kernels otherwise than the package does: with AMX emulated, with sanitizers, with a bug."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

HERE = Path(__file__).parent
SOURCES = Path(__file__).parents[4] / "src" / "dynattn" / "kernels" / "cpu"  # an installed package has none

_VECTORS = ("-D__AVX512F__", "-D__AVX512BW__", "-D__AVX512DQ__", "-Wno-psabi", "-include", str(HERE / "avx512_shim.h"))

# The engine on AMX with its instructions in C++, with the portable vectors or with emulated ones of AVX-512; and the
# engine on AVX-512, emulated whole.
EMULATED = ("-DDYNATTN_TILES_AMX", "-DDYNATTN_TILES_EMULATED", "-include", str(HERE / "amx_shim.h"))
EMULATED_AMX_AVX512 = (*EMULATED, *_VECTORS)
EMULATED_AVX512BF16 = ("-DDYNATTN_TILES_AVX512BF16", *_VECTORS)


def unavailable_reason() -> str | None:
    """Why nothing can be compiled here; None where it can."""
    return None if shutil.which("g++") else "no g++ is on the PATH"


@cache
def library(*options: str) -> ctypes.CDLL:
    """The kernels of the package, compiled with further options."""
    return build(SOURCES, *options)


def build(sources: Path, *options: str) -> ctypes.CDLL:
    """The kernels of ``sources``, compiled with further options.

    Raises:
        RuntimeError: they do not compile.
    """
    path = Path(tempfile.mkdtemp(prefix="dynattn-tiles-")) / "tiles.so"
    command = [
        "g++", "-std=c++17", "-Og", "-shared", "-fPIC", "-pthread", "-DDYNATTN_NAMESPACE=tiles_tested",
        f"-I{sources}", *options, str(HERE / "entry.cpp"), "-o", str(path),
    ]  # fmt: skip
    compiled = subprocess.run(command, capture_output=True, text=True)
    if compiled.returncode != 0:
        raise RuntimeError(f"the tile kernels do not compile: {compiled.stderr}")
    return ctypes.CDLL(str(path))


def with_bug(file: str, right: str, wrong: str, *options: str) -> ctypes.CDLL:
    """The kernels with the text ``right`` of one file turned into ``wrong``, compiled with further options."""
    sources = Path(tempfile.mkdtemp(prefix="dynattn-tiles-bug-")) / "cpu"
    shutil.copytree(SOURCES, sources, ignore=shutil.ignore_patterns("*.so", "*.py", "__pycache__"))
    text = (sources / file).read_text()
    if text.count(right) != 1:
        raise RuntimeError(f"{file} must have the text once: {right!r} is there {text.count(right)} times")
    (sources / file).write_text(text.replace(right, wrong))
    return build(sources, "-O0", *options)
