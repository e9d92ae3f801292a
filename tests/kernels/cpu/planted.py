"""Builds kernels with a bug put into them on purpose."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from dynattn.kernels import cpu
from dynattn.kernels.cpu import runner

SOURCES = Path(__file__).parents[3] / "src/dynattn/kernels/cpu"

NEEDED = [
    pytest.mark.skipif(shutil.which("g++") is None, reason="no g++ is on the PATH"),
    pytest.mark.skipif(not cpu.is_available(), reason=cpu.unavailable_reason() or ""),
]


def build(entry: Path, folder: Path, file: str = "", right: str = "", wrong: str = "") -> Any:
    """The library of ``entry``, compiled in ``folder`` with ``wrong`` in place of ``right``."""
    shutil.copytree(SOURCES, folder / "cpu", ignore=shutil.ignore_patterns("*.so", "*.py", "__pycache__"))
    if file:
        path = folder / "cpu" / file
        text = path.read_text()
        assert text.count(right) == 1, right
        path.write_text(text.replace(right, wrong))
    subprocess.run(
        ["g++", "-std=c++17", "-O0", "-w", "-shared", "-fPIC", "-pthread", f"-I{folder / 'cpu'}", str(entry), "-o",
         str(folder / "kernels.so")],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    return ctypes.CDLL(str(folder / "kernels.so"))


def take(library: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let calls run this library, which may refuse none."""

    def run(name: str, args: bytes) -> None:
        assert getattr(library, f"dynattn_{name}")(args) == 0

    monkeypatch.setattr(runner, "run", run)
