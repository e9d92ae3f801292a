"""Bugs of order put into the sm_90a backward on purpose: each must be seen by the emulator or by the definition.

Bugs of place, a wrong row or swizzle, show in every gradient; one stands for them.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from dynattn import NM
from dynattn.kernels.cuda import emulator
from tests.covering import part
from tests.kernels.cuda.emulation_backward import HOPPER, HOPPER_FEW_BLOCKS, BackwardProblem, backward_problem
from tests.kernels.cuda.test_planted_backward_bugs import detected, passes
from tests.kernels.cuda.test_planted_bugs import plant

pytestmark = pytest.mark.skipif(emulator.unavailable_reason() is not None, reason=str(emulator.unavailable_reason()))


def small() -> BackwardProblem:
    return backward_problem(20, 130, method=NM(1, 2), device=HOPPER)


def long() -> BackwardProblem:
    return backward_problem(200, 260, method=NM(1, 2), causal=True, device=HOPPER_FEW_BLOCKS)


MAIN, COPIES = "nm_backward_wgmma.cu", "backward_copies.cuh"
BUGS = [
    ("V in halves", COPIES, "maps.value_high, column", "maps.value_low, column", small),
    ("metadata of another unit", MAIN, "i % SETS == 0 ? metadata[unit]", "i % SETS == 0 ? metadata[0]", small),
    ("stores without a fence", MAIN, "    stores_fence();\n", "", small),
    ("P and dS not waited for", MAIN, "    warpgroup_barrier(1 + group);  // P and dS are there\n", "", small),
    ("dP not waited for", MAIN, "products_wait<0>();\n    pin(value_products);", "", small),
    ("a stage released too early", MAIN,
     "if (key0 < keys_needed(f, place.first_query, CONSUMER_ROWS)) add_tile(place, key0, ring.stage);\n"
     "        release(shared.free(ring.stage));",
     "release(shared.free(ring.stage));\n"
     "        if (key0 < keys_needed(f, place.first_query, CONSUMER_ROWS)) add_tile(place, key0, ring.stage);", long),
    ("parts of dQ overwritten", MAIN, "barrier_wait(shared.taken(warp), handed_parity ^ 1);", "", long),
    ("parts of dQ not waited for", MAIN, "barrier_wait(shared.handed_over(warp), handed_parity);", "", small),
]  # fmt: skip


@pytest.mark.parametrize(("what", "file", "right", "wrong", "case"), part(BUGS, 4, lambda bug: bug[0]))
def test_it_is_seen(
    what: str, file: str, right: str, wrong: str, case: Callable[[], BackwardProblem], tmp_path: Path
) -> None:
    assert passes(case), "the case must pass without the bug"
    assert detected(case(), plant(tmp_path, file, right, wrong)), f"not detected: {what}"
