"""Bugs put into the kernels on purpose: each must be seen by the emulator or by the comparison with the definition."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import emulation
import pytest
import torch
from emulation import SCHEDULES, Problem, check, run, simple

from dynattn import NM
from dynattn.kernels.cuda import emulator
from dynattn.kernels.cuda.emulator import EmulationError

pytestmark = pytest.mark.skipif(emulator.unavailable_reason() is not None, reason=str(emulator.unavailable_reason()))


def tail(kernel: str) -> Problem:
    return simple(kernel, 70, 206, method=NM(2, 4), causal=True)


def pairs(kernel: str) -> Problem:
    return simple(kernel, 70, 206 if kernel == "mma1" else 526, causal=True)


def wide(kernel: str) -> Problem:
    return simple(kernel, 70, 206, 128)


def band(kernel: str) -> Problem:
    return simple(kernel, 70, 206, method=NM(1, 2, window=3), causal=True, aux=kernel != "wgmma")


def coarse_pairs(kernel: str) -> Problem:
    query, key = (emulation.grid(1, 1, n, 64, seed=n, dtype=torch.bfloat16, spread=1) for n in (70, 206))
    return replace(pairs(kernel), query=query, key=key)


def coarse_fours(kernel: str) -> Problem:
    return replace(coarse_pairs(kernel), method=NM(2, 4))


def negative(kernel: str) -> Problem:
    return replace(tail(kernel), scale=-0.125)


def empty(kernel: str) -> Problem:
    problem = pairs(kernel)  # queries before the first key
    return replace(problem, query=problem.query.repeat(1, 1, 4, 1))


def unwritten_slots(kernel: str) -> Problem:
    problem = replace(pairs(kernel), mask=(torch.arange(206) < 100).view(1, 1, 1, 206))
    problem.value[:, :, 100:] = math.nan
    return problem


MMA_BUGS = [
    (
        "K rows not permuted",
        "mma_tiles.cuh",
        "16 * chunk + 4 * (r >> 1) + 2 * half + (r & 1); }",
        "16 * chunk + 8 * half + r; }",
        pairs,
    ),
    ("swizzle of K read and written apart", "mma_tiles.cuh", "((row >> 1) & 6) | (row & 1)", "row & 7", pairs),
    ("selector", "mma_tiles.cuh", "multiply_sparse<Element, 1>", "multiply_sparse<Element, 0>", pairs),
    (
        "values not waited for",
        "nm_mma.cu",
        "copies_wait();\n    block_barrier();  // values",
        "block_barrier();  // values",
        pairs,
    ),
    (
        "keys overwritten while read",
        "nm_mma.cu",
        "block_barrier();  // values are there, and no warp reads keys any more",
        "",
        pairs,
    ),
    (
        "values overwritten while read",
        "nm_mma.cu",
        "block_barrier();  // keys are there, and no warp reads values any more",
        "",
        pairs,
    ),
    ("rows past the end not zeroed", "mma_tiles.cuh", "row < rows_left && ", "", tail),
    ("sign of the scale", "nm_mma.cu", "? 0x80008000u", "? 0x8000u", negative),
    (
        "upper pairs",
        "nm_mma.cu",
        "operand_of<Element>(pairs[1][0], UPPER_PAIRS)",
        "operand_of<Element>(pairs[1][0], LOWER_PAIRS)",
        band,
    ),
    (
        "leaks not repaired",
        "output.cuh",
        "leaked[row] = leaked[row] && sum == sum;",
        "leaked[row] = false;",
        unwritten_slots,
    ),
    ("bytes of the quad", "choice.cuh", "0x6240u : 0x3715u", "0x6240u : 0x7351u", pairs),
    ("parity of the bits", "choice.cuh", "last ? 1 : 2", "2", pairs),
    ("ties of pairs", "choice.cuh", "difference(x0, x1)", "-difference(x1, x0)", coarse_pairs),
    ("ties of fours", "choice.cuh", "lower_ab >= upper_xy", "lower_ab > upper_xy", coarse_fours),
    (
        "nibble of the second pair",
        "choice.cuh",
        "(second_pair >> 2) & 0x22222222u",
        "(second_pair >> 2) & 0x02222222u",
        tail,
    ),
    ("causal limit", "mask.cuh", "query + p.kv_len - p.q_len;\n  return p.causal", "query;\n  return p.causal", pairs),
    ("window one too wide", "mask.cuh", "distance < p.window &&", "distance <= p.window &&", band),
    ("window touches too few tiles", "mask.cuh", "farthest = nearest + count - 1", "farthest = nearest", band),
    ("sums not rescaled", "softmax.cuh", "state.sum[row] *= correction[row];", "", pairs),
    ("base of rows without a key", "softmax.cuh", "if (base == -INFINITY_F) base = 0.0f;", "", empty),
]


def detected(problem: Problem, sources: Path) -> str | None:
    """What shows the bug, in any schedule; None where nothing does."""
    for schedule in SCHEDULES:
        try:
            check(problem, run(problem, schedule, sources))
        except (EmulationError, AssertionError) as error:
            return str(error)
    return None


@cache
def passes(case: Callable[[str], Problem], kernel: str) -> bool:
    """Whether the case is clean without a bug."""
    return detected(case(kernel), emulator.SOURCES) is None


def plant(folder: Path, file: str, right: str, wrong: str) -> Path:
    """A copy of the kernels with one text replaced."""
    sources = shutil.copytree(emulator.SOURCES, folder / "cuda", ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    text = (sources / file).read_text()
    assert text.count(right) == 1, f"{file} must contain {right!r} once"
    (sources / file).write_text(text.replace(right, wrong))
    return sources


WGMMA_BUGS = [
    (
        "strides of V's descriptor",
        "nm_wgmma.cu",
        "PANEL_BYTES, SWIZZLE_ATOM_BYTES);",
        "SWIZZLE_ATOM_BYTES, PANEL_BYTES);",
        wide,
    ),
    ("second box of K", "nm_wgmma.cu", "key_high, stages", "key_low, stages", pairs),
    ("scores not waited for", "nm_wgmma.cu", "products_wait<1>();", "", pairs),
    (
        "values not waited for",
        "nm_wgmma.cu",
        "products_wait<0>();\n      pin(o);\n      release(stages.values_free((n - 1) % STAGES));",
        "release(stages.values_free((n - 1) % STAGES));",
        pairs,
    ),
    (
        "keys released too early",
        "nm_wgmma.cu",
        "products_commit();\n  }\n\n  DYNATTN_DEVICE void start_values",
        "products_commit();\n    release(stages.keys_free(n % STAGES));\n  }\n\n  DYNATTN_DEVICE void start_values",
        pairs,
    ),
    (
        "metadata of another unit",
        "nm_wgmma.cu",
        "values, weights.metadata[step / 2]);\n      } else",
        "values, weights.metadata[0]);\n      } else",
        pairs,
    ),
    (
        "parity",
        "nm_wgmma.cu",
        "parity(n) ^ 1);\n      barrier_arrive_and_expect(stages.values",
        "parity(n));\n      barrier_arrive_and_expect(stages.values",
        pairs,
    ),
    ("upper pairs", "nm_wgmma.cu", "set_metadata(weights, UPPER_PAIRS)", "set_metadata(weights, LOWER_PAIRS)", band),
    (
        "edges never taken",
        "nm_wgmma.cu",
        "for (int edge = 0; edge < 2; ++edge)",
        "for (int edge = 0; edge < 1; ++edge)",
        band,
    ),
]


@pytest.mark.parametrize(("what", "file", "right", "wrong", "case"), WGMMA_BUGS, ids=[bug[0] for bug in WGMMA_BUGS])
def test_wgmma(what: str, file: str, right: str, wrong: str, case: Callable[[str], Problem], tmp_path: Path) -> None:
    assert passes(case, "wgmma"), "the case must pass without the bug"
    assert detected(case("wgmma"), plant(tmp_path, file, right, wrong)), f"not detected: {what}"


@pytest.mark.parametrize(("what", "file", "right", "wrong", "case"), MMA_BUGS, ids=[bug[0] for bug in MMA_BUGS])
def test_mma(what: str, file: str, right: str, wrong: str, case: Callable[[str], Problem], tmp_path: Path) -> None:
    assert passes(case, "mma1"), "the case must pass without the bug"
    assert detected(case("mma1"), plant(tmp_path, file, right, wrong)), f"not detected: {what}"
