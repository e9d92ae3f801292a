"""Runs the CUDA kernels on a CPU: the same ``.cu`` sources, compiled by a C++ compiler against emulated instructions.

A thread block's threads are fibers; ``ldmatrix``, ``mma``, ``mma.sp``, ``cp.async``, and on sm_90a TMA, mbarriers and
``wgmma``, do in memory what the PTX ISA's tables say of registers, and refuse what it leaves undefined. A kernel that
gives the right answer here, in every :class:`Schedule`, has its layouts, metadata, masks and waits right. What an
emulator cannot say: that the tables were read right (a probe on a device does), and how fast it is.
"""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from dynattn.kernels.cuda.launch import Launch
    from dynattn.kernels.cuda.launch_backward import BackwardLaunch

SOURCES = Path(__file__).parents[1]

_MAX_RANK = 5
_OWN = (  # what emulator/driver.hpp includes, and itself
    "params.cuh", "backward_params.cuh", "emulator/fibers.hpp", "emulator/emulator.hpp", "emulator/hopper.hpp",
    "emulator/driver.hpp",
)  # fmt: skip
# Products of a warpgroup are written where they are waited for, into what the kernel holds in registers. The compiler
# must inline the functions between: without optimisation their frames are gone by then, and a missing wait overwrites
# the stack.
_FLAGS = (
    "-std=c++17", "-O1", "-fPIC", "-DDYNATTN_EMULATOR", "-w", "-fno-gnu-unique",
    "-ffp-contract=off", "-U_FORTIFY_SOURCE",  # whose longjmp refuses to jump to another stack
)  # fmt: skip
_BACKWARD_ENTRY = """
    #include "emulator/driver.hpp"
    #include "{source}"
    extern "C" int emulator_run(const dynattn::BackwardParams* params, const void*, long long blocks, int threads,
                                long long shared_bytes, int reversed, int eager) {{
      return emulator::launch(*params, blocks, threads, shared_bytes, reversed, eager,
                              [=] {{ {kernel}(*params); }});
    }}
    """
_ENTRY = {
    "mma": """
    #include "emulator/driver.hpp"
    #include "nm_mma.cu"
    extern "C" int emulator_run(const dynattn::ForwardParams* params, const void*, long long blocks, int threads,
                                long long shared_bytes, int reversed, int eager) {{
      emulator::element_bytes = {element_bytes};
      return emulator::launch(*params, blocks, threads, shared_bytes, reversed, eager,
                              [=] {{ {kernel}(*params); }});
    }}
    """,
    "wgmma": """
    #include "emulator/driver.hpp"
    #include "nm_wgmma.cu"
    extern "C" int emulator_run(const dynattn::ForwardParams* params, const dynattn::TensorMap* maps, long long blocks,
                                int threads, long long shared_bytes, int reversed, int eager) {{
      return emulator::launch(*params, blocks, threads, shared_bytes, reversed, eager,
                              [=] {{ {kernel}(*params, maps[0], maps[1], maps[2]); }});
    }}
    """,
    "backward_wgmma": """
    #include "emulator/driver.hpp"
    #include "nm_backward_wgmma.cu"
    extern "C" int emulator_run(const dynattn::BackwardParams* params, const dynattn::TensorMap* maps, long long blocks,
                                int threads, long long shared_bytes, int reversed, int eager) {{
      return emulator::launch(*params, blocks, threads, shared_bytes, reversed, eager, [=] {{
        {kernel}(*params, maps[0], maps[1], maps[2], maps[3], maps[4], maps[5], maps[6]);
      }});
    }}
    """,
}


class EmulationError(RuntimeError):
    """A kernel did what hardware leaves undefined, or threads waited for each other for ever."""


@dataclass(frozen=True)
class Schedule:
    """One of the orders of events that hardware may choose; a kernel must give the same result in all.

    Args:
        reversed: run the last warp first instead of the first.
        eager: let asynchronous copies land when they are issued instead of when they are waited for. The late order
            shows a missing wait, the early one a tile that is overwritten too soon.
    """

    reversed: bool = False
    eager: bool = False


class Counts(NamedTuple):
    """How many instructions ran, where one of a warp (or a warpgroup) counts once, and how many reads of ldmatrix met
    in a memory bank."""

    shuffles: int
    matrix_loads: int
    products: int
    sparse_products: int
    bank_conflicts: int
    warpgroup_products: int
    sparse_warpgroup_products: int


def unavailable_reason() -> str | None:
    """Why nothing can be emulated here; None where it can."""
    return None if _compiler() else "no g++ is on the PATH"


def run(launch: Launch | BackwardLaunch, schedule: Schedule = Schedule(), sources: Path = SOURCES) -> Counts:
    """Runs a launch on tensors in CPU memory.

    Args:
        launch: what :func:`dynattn.kernels.cuda.launch.prepare` gives for CPU tensors, or one of those that
            :func:`dynattn.kernels.cuda.launch_backward.prepare_backward` gives.
        schedule: which of the allowed orders of events to take.
        sources: folder with the kernels and this emulator; another one to try changed kernels.

    Returns:
        What was executed.

    Raises:
        EmulationError: the kernel did something undefined, or stopped making progress.
        RuntimeError: there is no compiler, or it refused the sources.
    """
    variant = launch.variant
    text = _ENTRY.get(variant.kernel, _BACKWARD_ENTRY).format(
        source=variant.source, kernel=variant.name_expression, element_bytes=getattr(variant, "element_bytes", 2)
    )
    library = build(text, sources)
    status = library.emulator_run(
        ctypes.byref(launch.params), _maps(launch.tensor_maps), ctypes.c_longlong(launch.blocks), variant.threads,
        ctypes.c_longlong(variant.shared_bytes), schedule.reversed, schedule.eager,
    )  # fmt: skip
    if status:
        raise EmulationError(f"{variant.name_expression}: {library.emulator_error().decode()}")
    counts = (ctypes.c_ulong * len(Counts._fields))()
    library.emulator_counts(counts)
    return Counts(*counts)


class _TensorMap(ctypes.Structure):
    """``dynattn::TensorMap`` of hopper.hpp; strides in elements, 1 for the first dimension."""

    _fields_ = (
        ("base", ctypes.c_void_p),
        ("rank", ctypes.c_int),
        ("sizes", ctypes.c_longlong * _MAX_RANK),
        ("strides", ctypes.c_longlong * _MAX_RANK),
        ("box", ctypes.c_int * _MAX_RANK),
    )


def _maps(maps: tuple) -> ctypes.Array:
    return (_TensorMap * len(maps))(
        *(_TensorMap(x.address, len(x.sizes), x.sizes, (1, *x.strides), x.box) for x in maps)
    )


def _compiler() -> str | None:
    return shutil.which("g++")


@cache
def _folder() -> tempfile.TemporaryDirectory:
    return tempfile.TemporaryDirectory(prefix="dynattn-emulator-")  # removed when the process ends


def _compile(compiler: str, *arguments: str, to: Path) -> None:
    done = subprocess.run([compiler, *_FLAGS, *arguments, "-o", str(to)], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"emulator: the sources must compile: {done.stderr[-3000:]}")


def _own_texts(sources: Path) -> tuple[str, ...]:
    return tuple((sources / name).read_text() for name in _OWN)


@cache
def _headers(compiler: str, texts: tuple[str, ...]) -> Path:
    """The emulator and the headers that it includes, compiled ahead: two fifths of a kernel's time. The compiler passes
    over files that hold the same, so that this serves all folders whose emulator is the same."""
    folder = Path(tempfile.mkdtemp(dir=_folder().name))
    (folder / "emulator").mkdir()
    for name, text in zip(_OWN, texts, strict=True):
        (folder / name).write_text(text)
    header = folder / "ahead.hpp"
    header.write_text('#include "emulator/driver.hpp"\n')
    _compile(compiler, "-x", "c++-header", str(header), to=header.with_suffix(".hpp.gch"))
    return header


@cache
def build(entry: str, sources: Path = SOURCES) -> ctypes.CDLL:
    """Compiles C++ that includes ``emulator/driver.hpp`` and a kernel; once a text and process.

    Args:
        entry: the text, with ``extern "C"`` functions to call.
        sources: folder with the kernels and this emulator.

    Raises:
        RuntimeError: there is no compiler, or it refused the sources.
    """
    compiler = _compiler()
    if compiler is None:
        raise RuntimeError("emulator: g++ must be on the PATH: found none; install it, or run on a GPU")
    folder = Path(tempfile.mkdtemp(dir=_folder().name))
    source, library = folder / "entry.cpp", folder / "kernel.so"
    source.write_text(entry)
    headers = _headers(compiler, _own_texts(sources))
    _compile(compiler, "-shared", "-include", str(headers), f"-I{sources}", str(source), to=library)
    loaded = ctypes.CDLL(str(library))
    loaded.emulator_error.restype = ctypes.c_char_p
    return loaded
