"""The check of an engine on the processor at hand: engines that agree pass, and a broken one is found out."""

from __future__ import annotations

import ctypes

import pytest

from tests.covering import part
from tests.kernels.cpu.tiles import building

pytestmark = pytest.mark.skipif(building.unavailable_reason() is not None, reason=str(building.unavailable_reason()))


def disagreement(engine: ctypes.CDLL, same_bits: bool = True) -> str | None:
    """What ``engine`` computes otherwise than the portable engine; both libraries are compiled by the tests."""
    portable = building.library()
    kernels = [
        ctypes.cast(getattr(portable, name), ctypes.c_void_p)
        for name in ("dynattn_nm_forward", "dynattn_nm_backward", "engine_product")
    ]
    engine.disagreement.restype = ctypes.c_char_p
    found = engine.disagreement(*kernels, ctypes.c_int32(same_bits))
    return None if found is None else found.decode()


@pytest.mark.parametrize(
    ("options", "same_bits"),
    [
        ((), True),
        (building.EMULATED, True),
        (building.EMULATED_AMX_AVX512, True),
        (building.EMULATED_AVX512BF16, False),
    ],
)
def test_engines_that_agree_pass(options: tuple[str, ...], same_bits: bool):
    assert disagreement(building.library(*options), same_bits) is None


def test_another_order_of_sums_has_other_bits():
    assert disagreement(building.library(*building.EMULATED_AVX512BF16)) == "products of ordinary numbers"


@pytest.mark.parametrize(
    ("file", "right", "wrong", "found"),
    part([
        ("tiles/engine_amx.h", "_tile_dpbf16ps(3, 5, 7)", "_tile_dpbf16ps(3, 5, 6)", "products of ordinary numbers"),
        ("tiles/softmax.h", "greater(x[1], x[0]), 0};", "greater(x[0], x[1]), 0};", "1:2"),
        ("tiles/gradients.h", "mul(weight, sub(d_weight, delta))", "mul(weight, d_weight)", "dense attention"),
        ("tiles/softmax.h", "state.overflow = overflow;\n  }", "state.sum = mul(sum, broadcast_lanes(1.1f));\n  }",
         "dense attention"),
    ], 3),
)  # fmt: skip
def test_a_broken_engine_is_found_out(file: str, right: str, wrong: str, found: str):
    assert disagreement(building.with_bug(file, right, wrong, *building.EMULATED)) == found
