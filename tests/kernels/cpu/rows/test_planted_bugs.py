"""Bugs put into the search for a row's threshold by mass on purpose: each must be seen by the definition."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from dynattn.methods import Mass, Rows

HERE = Path(__file__).parent
SOURCES = HERE.parents[3] / "src/dynattn/kernels/cpu"
SEARCH = "rows/find_mass.h"

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="no g++ is on the PATH")

BUGS = {
    "what is above the bracket is forgotten": ("b.from_high.mass + masses[0]", "masses[0]"),
    "all ties are kept": ("more ? key_of_tie(row, scores[last], last - first_tie + 1) : kAllTies", "kAllTies"),
    "ties are counted from the bracket's first": ("last - first_tie + 1", "last + 1"),
    "one key too many is kept": ("while (held < wanted &&", "while (held - masses[last] < wanted &&"),
    "many ties are rounded down": ("static_cast<int64_t>(ceilf(share))", "static_cast<int64_t>(share)"),
    "what is dropped is added up": (
        "select(under, zero(), load(weights + at + i * kWidth))",
        "select(under, load(weights + at + i * kWidth), zero())",
    ),
    "the few are not in order": ("at > 0 && score > scores[at - 1]", "false"),
    "rounding decides about equal weights": ("mass * seen.all.mass * (1.0f - kLacking)", "mass * seen.all.mass"),
}  # fmt: skip


def rows() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    normal = torch.randn(500, generator=generator)
    return [
        2 * normal, normal[:37], normal.mul(2).round(), torch.zeros(8), torch.full((1000,), 2.5),
        (normal > 0).float(), torch.arange(300.0) / 8, torch.tensor([3.0, 1.0, 1.0, 1.0]), torch.zeros(12),
        torch.zeros(100),
    ]  # fmt: skip


def build(folder: Path, right: str = "", wrong: str = "") -> Callable[[Tensor, float], Tensor]:
    """The search, compiled with ``wrong`` in place of ``right``: what it keeps of a row."""
    shutil.copytree(SOURCES, folder / "cpu", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    source = (folder / "cpu" / SEARCH).read_text()
    assert source.count(right) == 1 or not right
    (folder / "cpu" / SEARCH).write_text(source.replace(right, wrong) if right else source)
    subprocess.run(
        ["g++", "-std=c++17", "-O1", "-w", "-shared", "-fPIC", f"-I{folder / 'cpu'}", str(HERE / "entry.cpp"), "-o",
         str(folder / "search.so")],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    find = ctypes.CDLL(str(folder / "search.so")).find_mass

    def kept(row: Tensor, mass: float) -> Tensor:
        score, last = ctypes.c_float(), ctypes.c_int32()
        row = row.contiguous()
        find(
            ctypes.c_void_p(row.data_ptr()), ctypes.c_int64(len(row)), ctypes.c_float(mass), ctypes.byref(score),
            ctypes.byref(last),
        )  # fmt: skip
        return (row > score.value) | ((row == score.value) & (torch.arange(len(row)) <= last.value))

    return kept


def wrong_rows(kept: Callable[[Tensor, float], Tensor]) -> int:
    """How many choices are not the definition's."""
    wrong = 0
    for row in rows():
        for mass in (0.25, 0.5, 0.75, 0.9137, 0.95017):
            s = row.double().view(1, 1, 1, -1)
            wrong += not torch.equal(kept(row, mass), Mass(mass).choose(s, Rows(s, s, 0, 1.0))[0, 0, 0])
    return wrong


def test_the_search_without_a_bug_agrees(tmp_path: Path) -> None:
    assert wrong_rows(build(tmp_path)) == 0


@pytest.mark.parametrize("bug", BUGS)
def test_bug_is_seen(bug: str, tmp_path: Path) -> None:
    assert wrong_rows(build(tmp_path, *BUGS[bug])) > 0
