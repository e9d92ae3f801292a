"""Bugs put into the backward kernels on purpose: each must be seen by the emulator or by the definition."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch

from dynattn import NM
from dynattn.kernels.cuda import emulator
from dynattn.kernels.cuda.emulator import EmulationError
from tests.covering import part
from tests.kernels.cuda.emulation import SCHEDULES, with_large_scores
from tests.kernels.cuda.emulation_backward import (
    FEW_BLOCKS,
    ROWS,
    BackwardProblem,
    backward_problem,
    changed,
    check,
    run,
)
from tests.kernels.cuda.test_planted_bugs import plant

pytestmark = pytest.mark.skipif(emulator.unavailable_reason() is not None, reason=str(emulator.unavailable_reason()))


def plain() -> BackwardProblem:
    return backward_problem(70, 150, heads=2, kv_heads=1, causal=True, device=FEW_BLOCKS)


def fours() -> BackwardProblem:
    return backward_problem(70, 100, method=NM(2, 4))


def band() -> BackwardProblem:
    return backward_problem(30, 70, method=NM(1, 2, window=3))


def unwritten_slots() -> BackwardProblem:
    problem = backward_problem(50, 70, 32, mask=(torch.arange(70) < 40).view(1, 1, 1, 70))
    value = problem.forward.value.clone()
    value[:, :, 40:] = math.nan
    return changed(problem, value=value)


def drops() -> BackwardProblem:
    return backward_problem(40, 102, 32, heads=2, kv_heads=1, method=NM(2, 4), dropout_p=0.4)


def large() -> BackwardProblem:
    problem = backward_problem(20, 70)
    return replace(problem, forward=with_large_scores(problem.forward))


MAIN, WEIGHTS, ORDER = "nm_backward.cu", "backward_weights.cuh", "backward_order.cuh"
BUGS = [
    ("copies not waited for", MAIN, "copies_wait();\n", "\n", plain),
    ("P and dS not waited for", MAIN, "block_barrier();  // P and dS are there", "", plain),
    ("queries overwritten while read", MAIN, "block_barrier();  // no warp reads queries", "//", plain),
    ("keys overwritten while read", MAIN, "block_barrier();  // no warp reads the tile of keys", "//", plain),
    ("first tile of queries", ORDER, "first_query / queries : 0", "first_query / queries + 1 : 0", plain),
    ("heads of a group", ORDER, "first < end ? head + group", "first < end ? head + 1", plain),
    ("swizzle of K in natural order", MAIN, "swizzle_key<Rows::keys_and_others>(lane)", "(lane & 7)", plain),
    ("exchange", MAIN, "finish(exchange(kept[tile][0].nibbles, quad), quad)", "kept[tile][0].nibbles", fours),
    ("upper pairs", MAIN, "_packed(packed[1], UPPER_PAIRS)", "_packed(packed[1], LOWER_PAIRS)", band),
    ("product of the second", WEIGHTS, "second == 2 ? group[2] : group[1]", "group[2]", fours),
    ("weights of 0", WEIGHTS, "weight == 0.0f ? 0.0f : ", "", unwritten_slots),
    ("dropout forgotten in dP", WEIGHTS, "z * pair[i]", "pair[i]", drops),
    ("dropout forgotten in dV", WEIGHTS, "weight *= z;", "", drops),
    ("dropout of another head", MAIN, "dropout(f, place.batch, place.head)", "dropout(f, place.batch, 0)", drops),
    ("sums of rows", ROWS, "if (!is_rough(logsumexp)) return", "return", large),
    ("splits left out", ROWS, "split < p.splits", "split < 1", plain),
]  # fmt: skip


def detected(problem: BackwardProblem, sources: Path) -> str | None:
    """What shows the bug, in any schedule; None where nothing does."""
    for schedule in SCHEDULES:
        try:
            check(problem, run(problem, schedule, sources))
        except (EmulationError, AssertionError) as error:
            return str(error)
    return None


@cache
def passes(case: Callable[[], BackwardProblem]) -> bool:
    """Whether the case is clean without a bug."""
    problem = case()
    check(problem, run(problem))
    return True


@pytest.mark.parametrize(("what", "file", "right", "wrong", "case"), part(BUGS, 4, lambda bug: bug[0]))
def test_it_is_seen(
    what: str, file: str, right: str, wrong: str, case: Callable[[], BackwardProblem], tmp_path: Path
) -> None:
    assert passes(case), "the case must pass without the bug"
    assert detected(case(), plant(tmp_path, file, right, wrong)), f"not detected: {what}"
