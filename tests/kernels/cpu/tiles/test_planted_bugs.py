"""Bugs put into the tile kernels on purpose: each must be seen by the comparison with the definition."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, NamedTuple

import pytest
import torch

from dynattn.methods import NM
from tests.covering import part
from tests.kernels.cpu.tiles import building
from tests.kernels.cpu.tiles.calling import Problem, check, grid

pytestmark = pytest.mark.skipif(building.unavailable_reason() is not None, reason=str(building.unavailable_reason()))


class Bug(NamedTuple):
    """In ``file``, the text ``right`` becomes ``wrong``; ``problem`` shows it."""

    file: str
    right: str
    wrong: str
    problem: Problem
    options: tuple[str, ...] = ()  # of the compiler: the portable engine, or another one that is emulated


def plain(method: NM = NM(1, 2), **options: Any) -> Problem:
    return grid(2, 1, 40, 150, 16, 24, method=method, **options)


def all_alike(method: NM) -> Problem:
    """Every score is the same, and no two values are."""
    problem = plain(method)
    return replace(problem, query=torch.ones_like(problem.query), key=torch.ones_like(problem.key))


def growing(step: float, method: NM = NM(1, 2)) -> Problem:
    problem = plain(method, scale=math.log(2))
    problem.query[..., 0], problem.key[..., 0] = 1.0, (torch.arange(150) // 64 * step).bfloat16()
    return problem


def with_an_infinite_value() -> Problem:
    mask = torch.ones(1, 1, 40, 150, dtype=torch.bool)
    mask[..., :20, 70] = False
    problem = plain(NM(1, 1), mask=mask)
    problem.value[0, 0, 70, 3] = math.inf
    return problem


def with_gaps() -> Problem:
    problem = plain()
    return replace(problem, key=torch.nn.functional.pad(problem.key, (0, 5), value=math.nan)[..., :16])


def low_rows() -> Problem:
    mask = torch.zeros(1, 1, 40, 150)
    mask[..., 3, :] = torch.finfo(torch.float32).min
    problem = plain(mask=mask)
    problem.query[:, :, 3] = 0
    return problem


BUGS = [
    Bug("tiles/softmax.h", "greater(x[1], x[0]), 0};", "static_cast<LaneMask>(~greater(x[0], x[1])), 0};",
        all_alike(NM(1, 2, stride=16))),
    Bug("tiles/softmax.h", "upper = greater(high, low)", "upper = static_cast<LaneMask>(~greater(low, high))",
        all_alike(NM(1, 4))),
    Bug("tiles/pack.h", "const int64_t key = plan.key_at[place];", "const int64_t key = plan.place[place];",
        plain(NM(1, 4, stride=8))),
    Bug("tiles/softmax.h", "with_bits(high.two, picked, 0x04040000u)", "picked", plain(NM(2, 4)),
        building.EMULATED_AVX512BF16),
    Bug("tiles/softmax.h", "kSecond = kN == 1 ? kM : 0", "kSecond = 0", plain(NM(1, 4)), building.EMULATED_AVX512BF16),
    Bug("tiles/softmax.h", "before = kept[0];", "", plain(NM(1, 2)), building.EMULATED_AVX512BF16),
    Bug("tiles/engine_avx512bf16.h", "places + j * picks.second", "places", plain(NM(1, 2)),
        building.EMULATED_AVX512BF16),
    Bug("tiles/softmax.h", "(~ab & bc) | (~ab & bd) | (bc & bd)", "(ab & bc) | (ab & bd) | (bc & bd)",
        plain(NM(2, 4))),
    Bug("tiles/softmax.h", "select(d, x[3], select(c, x[2], x[1]))", "select(c, x[2], select(d, x[3], x[1]))",
        plain(NM(2, 4))),
    Bug("tiles/softmax.h", "const LaneMask later = greater(x[i], x[j]);",
        "const LaneMask later = static_cast<LaneMask>(~greater(x[j], x[i]));", all_alike(NM(3, 5))),
    Bug("tiles/softmax.h", "overflow = either(overflow, bits);", "", growing(180.0)),
    Bug("tiles/softmax.h", "state.passed = select(", "(void)select(", low_rows()),
    Bug("tiles/softmax.h", "state.sum = mul(state.sum, factor);", "", growing(200.0)),
    Bug("tiles/softmax.h", "store(score_row(tile, key), select(pairs, x, forbidden));",
        "store(score_row(tile, key), x);", plain(causal=True)),
    Bug("tiles/forward.h", "if (pass.careful && !plan.floats) add_odd_values(pass, block);", "",
        with_an_infinite_value()),
    Bug("tiles/forward.h", "if (bits & kNotKept) continue;", "", with_an_infinite_value()),
    Bug("tiles/forward.h", "put_weight(tile, place, broadcast_words(0));",
        "put_weight(tile, place, broadcast_words(0x7f80u));", plain(NM(1, 3, stride=17))),
    Bug("tiles/forward.h", "if (args.causal) end = smaller(end, pass.at.first + pass.at.count + plan.offset);",
        "if (args.causal) end = smaller(end, pass.at.first + plan.offset);", plain(causal=True)),
    Bug("tiles/pack.h", "args.scale < 0 ? 0x80008000u : 0u", "args.scale < 0 ? 0x8000u : 0u", plain(scale=-0.25)),
    Bug("tiles/plan.h", "args.head_dim % kTileDepth == 0 && !plan.floats ? inside : 0", "inside", with_gaps()),
    Bug("tiles/allowed.h", "query_bits(lane - reach.window + 1, lane + reach.window)",
        "query_bits(lane - reach.window, lane + reach.window)", plain(NM(1, 2, window=5))),
    Bug("tiles/drop.h", "select(in_high, odd, even)", "even", plain(dropout_p=0.5)),
    Bug("tiles/engine_portable.h", "sums[n] = flushed_sum(normal_or_zero(sums[n]),", "sums[n] = flushed_sum(0.0f,",
        grid(1, 1, 20, 100, 64, 16)),
]  # fmt: skip


@pytest.mark.parametrize("number", part(range(len(BUGS)), 4, str))
def test_a_bug_is_seen(number: int):
    bug = BUGS[number]
    check(bug.problem, "tiles-portable")
    library = building.with_bug(bug.file, bug.right, bug.wrong, *bug.options)
    with pytest.raises(AssertionError):
        check(bug.problem, library)
