"""Whether a ctypes structure lies in memory as the kernels' header has it: a compiler is asked."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path

import pytest


def check(structure: type[ctypes.Structure], header: Path, folder: Path) -> None:
    """Sizes and offsets of all fields of ``structure``, against ``dynattn``'s of the same name in ``header``."""
    compiler = shutil.which("c++")
    if compiler is None:
        pytest.skip("needs a C++ compiler")
    lines = ["#include <cstddef>", f'#include "{header}"', f"using P = dynattn::{structure.__name__};"]
    lines += [f"static_assert(sizeof(P) == {ctypes.sizeof(structure)});"]
    for name, *_ in structure._fields_:
        field = getattr(structure, name)
        lines.append(f"static_assert(offsetof(P, {name}) == {field.offset} && sizeof(P::{name}) == {field.size});")
    source = folder / "layout.cpp"
    source.write_text("\n".join(lines))
    subprocess.run([compiler, "-std=c++17", "-fsyntax-only", str(source)], check=True)
