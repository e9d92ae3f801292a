"""Bugs put into the kernels on purpose: each must be seen by the emulator or by the comparison with the definition."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from dynattn import NM
from dynattn.kernels.cuda import emulator
from dynattn.kernels.cuda.emulator import EmulationError
from tests.covering import part
from tests.kernels.cuda import emulation
from tests.kernels.cuda.emulation import SCHEDULES, Problem, check, run, simple

pytestmark = pytest.mark.skipif(emulator.unavailable_reason() is not None, reason=str(emulator.unavailable_reason()))


class Bug(NamedTuple):
    """In ``file``, the text ``right`` becomes ``wrong``; ``case`` gives the problem that shows it."""

    what: str
    file: str
    case: Callable[[str], Problem]
    right: str
    wrong: str


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


def apart(kernel: str) -> Problem:
    return simple(kernel, 70, 206 if kernel == "mma1" else 208, method=NM(2, 4, stride=16), causal=True)


def band_apart(kernel: str) -> Problem:
    mask = emulation.allowed(70, 208, seed=7, share=0.7)
    return simple(kernel, 70, 208, method=NM(1, 2, window=3, stride=16), causal=True, mask=mask)


def words(kernel: str) -> Problem:
    return simple(kernel, 70, 134, 32, dtype=torch.float32, causal=True)


def words_of_fours(kernel: str) -> Problem:
    return replace(words(kernel), method=NM(2, 4))


def unwritten_slots_apart(kernel: str) -> Problem:
    return replace(unwritten_slots(kernel), method=NM(1, 2, stride=16))


def unwritten_slots(kernel: str) -> Problem:
    problem = replace(pairs(kernel), mask=(torch.arange(206) < 100).view(1, 1, 1, 206))
    problem.value[:, :, 100:] = math.nan
    return problem


def drops(kernel: str) -> Problem:
    return simple(kernel, 40, 102, 32, 4, 2, method=NM(2, 4, stride=16), causal=True, dropout_p=0.4)


def unwritten_slots_and_drops(kernel: str) -> Problem:
    problem = replace(drops(kernel), mask=(torch.arange(102) < 60).view(1, 1, 1, 102))
    problem.value[:, :, 60:] = math.nan
    return problem


# fmt: off
MMA_BUGS = [
    Bug("K rows not permuted", "mma_tiles.cuh", pairs,
        "16 * chunk + 4 * (r >> 1) + 2 * half + (r & 1); }", "16 * chunk + 8 * half + r; }"),
    Bug("swizzle of K read and written apart", "mma_tiles.cuh", pairs, "((row >> 1) & 6) | (row & 1)", "row & 7"),
    Bug("selector", "mma_tiles.cuh", pairs, "multiply_sparse<Element, 1>", "multiply_sparse<Element, 0>"),
    Bug("values not waited for", "nm_mma.cu", pairs,
        "copies_wait();\n    block_barrier();  // values", "block_barrier();  // values"),
    Bug("keys overwritten while read", "nm_mma.cu", pairs,
        "block_barrier();  // values are there, and no warp reads keys any more", ""),
    Bug("values overwritten while read", "nm_mma.cu", pairs,
        "block_barrier();  // keys are there, and no warp reads values any more", ""),
    Bug("rows past the end not zeroed", "mma_tiles.cuh", tail, "source_row < rows_left && ", ""),
    Bug("sign of the scale", "elements.cuh", negative, "SIGNS = 0x80008000u", "SIGNS = 0x8000u"),
    Bug("upper pairs", "nm_mma.cu", band,
        "set(upper, pairs[1][0], UPPER_PAIRS)", "set(upper, pairs[1][0], LOWER_PAIRS)"),
    Bug("leaks not repaired", "output.cuh", unwritten_slots,
        "leaked[row] = leaked[row] && sum == sum;", "leaked[row] = false;"),
    Bug("bytes of the quad", "choice.cuh", pairs, "0x6240u : 0x3715u", "0x6240u : 0x7351u"),
    Bug("parity of the bits", "choice.cuh", pairs, "last ? 1 : 2", "2"),
    Bug("ties of pairs", "choice.cuh", coarse_pairs, "difference(x0, x1)", "-difference(x1, x0)"),
    Bug("ties of fours", "choice.cuh", coarse_fours, "lower_ab >= upper_xy", "lower_ab > upper_xy"),
    Bug("nibble of the second pair", "choice.cuh", tail,
        "(second_pair >> 2) & 0x22222222u", "(second_pair >> 2) & 0x02222222u"),
    Bug("causal limit", "mask.cuh", pairs,
        "query + p.kv_len - p.q_len;\n  return p.causal", "query;\n  return p.causal"),
    Bug("window one too wide", "mask.cuh", band, "distance < p.window &&", "distance <= p.window &&"),
    Bug("window touches too few tiles", "mask.cuh", band, "farthest = nearest + count - 1", "farthest = nearest"),
    Bug("sums not rescaled", "softmax.cuh", pairs, "state.sum[row] *= correction[row];", ""),
    Bug("base of rows without a key", "softmax.cuh", empty, "state.base[row] == -INFINITY_F ? 0.0f : ", ""),
    Bug("rows of another key", "mma_tiles.cuh", apart, "source + key_at<STRIDE>(first_row)", "source + first_row"),
    Bug("limits by position", "mask.cuh", apart,
        "first + key_at<STRIDE>(16 * chunk + 2 * half + (i & 1))", "first + 16 * chunk + 2 * half + (i & 1)"),
    Bug("band by position", "mask.cuh", band_apart, "key_at<STRIDE>(16 * chunk + i)", "(16 * chunk + i)"),
    Bug("bits of another key", "mask.cuh", band_apart, "1u << (4 * chunk + i)", "1u << (4 * i + chunk)"),
    Bug("repaired with another key's value", "careful.cuh", unwritten_slots_apart,
        "key_at<STRIDE>(4 * owner + i)", "(4 * owner + i)"),
    Bug("TF32: metadata of the other half", "choice.cuh", words, "nibbles >> 2 * half &", "nibbles &"),
    Bug("TF32: rows of V", "tf32_tiles.cuh", words,
        "2 * (product >> 1) + 4 * (t >> 1)", "4 * (product >> 1) + 2 * (t >> 1)"),
    Bug("TF32: fours as if they had a sparse form", "nm_mma.cu", words_of_fours,
        "WORDS == 2 && PATTERN == Pattern::two_of_four", "false"),
    Bug("dropout: order of the counter", "dropout.cuh", drops,
        "first = key, second = query", "first = query, second = key"),
    Bug("dropout: half of the seed", "dropout.cuh", drops, "key_c = upper_word(seed)", "key_c = 0"),
    Bug("dropout: key by position", "choice.cuh", drops,
        "key_at<STRIDE>(4 * (lane & 3)) + member * STRIDE", "4 * (lane & 3) + member"),
    Bug("dropout: member of another row's group", "choice.cuh", drops,
        "4 * chunk + 16 * row + 2 * second", "2 * second"),
    Bug("dropout: head of keys", "nm_mma.cu", drops, "{p, place.batch, place.head}", "{p, place.batch, place.kv_head}"),
    Bug("dropout: what is left not scaled", "output.cuh", drops, "DROPOUT ? p.keep_factor : 1.0f", "1.0f"),
    Bug("dropout: not in repaired rows", "careful.cuh", unwritten_slots_and_drops,
        "if (dropout.drops(query, of_owner)) w = 0.0f;", ""),
]

WGMMA_BUGS = [
    Bug("strides of V's descriptor", "nm_wgmma.cu", wide,
        "PANEL_BYTES, SWIZZLE_ATOM_BYTES);", "SWIZZLE_ATOM_BYTES, PANEL_BYTES);"),
    Bug("second box of K", "nm_wgmma.cu", pairs,
        "PANEL_BYTES / 2, high, filled, column, 0", "PANEL_BYTES / 2, low, filled, column, 0"),
    Bug("scores not waited for", "nm_wgmma.cu", pairs, "products_wait<1>();", ""),
    Bug("values not waited for", "nm_wgmma.cu", pairs,
        "products_wait<0>();\n      pin(o);\n      release(stages.values_free((n - 1) % STAGES));",
        "release(stages.values_free((n - 1) % STAGES));"),
    Bug("keys released too early", "nm_wgmma.cu", pairs,
        "products_commit();\n  }\n\n  DYNATTN_DEVICE void start_values",
        "products_commit();\n    release(stages.keys_free(n % STAGES));\n  }\n\n  DYNATTN_DEVICE void start_values"),
    Bug("metadata of another unit", "nm_wgmma.cu", pairs,
        "values, weights.metadata[step / 2]);\n      } else", "values, weights.metadata[0]);\n      } else"),
    Bug("parity", "nm_wgmma.cu", pairs,
        "stages.values_free(stage), parity(n) ^ 1)", "stages.values_free(stage), parity(n))"),
    Bug("upper pairs", "nm_wgmma.cu", band, "set_metadata(weights, UPPER_PAIRS)", "set_metadata(weights, LOWER_PAIRS)"),
    Bug("edges never taken", "nm_wgmma.cu", band,
        "for (int edge = 0; edge < 2; ++edge)", "for (int edge = 0; edge < 1; ++edge)"),
    Bug("second half of the members", "nm_wgmma.cu", apart, "column, member + 2, 0", "column, member, 0"),
    Bug("values of another unit", "nm_wgmma.cu", apart, "key0 / STRIDE + 4 * unit, 0", "key0 / STRIDE, 0"),
]
# fmt: on


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


def see(bug: Bug, kernel: str, folder: Path) -> None:
    """The case passes without the bug, and with it something shows."""
    assert passes(bug.case, kernel), "the case must pass without the bug"
    sources = plant(folder, bug.file, bug.right, bug.wrong)
    assert detected(bug.case(kernel), sources), f"not detected: {bug.what}"


@pytest.mark.parametrize("bug", part(MMA_BUGS, 4, lambda bug: bug.what))
def test_mma(bug: Bug, tmp_path: Path) -> None:
    see(bug, "mma1", tmp_path)


@pytest.mark.parametrize("bug", part(WGMMA_BUGS, 4, lambda bug: bug.what))
def test_wgmma(bug: Bug, tmp_path: Path) -> None:
    see(bug, "wgmma", tmp_path)
