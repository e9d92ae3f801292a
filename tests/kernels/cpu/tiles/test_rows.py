"""Rows that choose by their own scores, on tile engines, against the kernels that take one row after another."""

from __future__ import annotations

import ctypes
import itertools
import math

import pytest
import torch
from torch import Tensor

import dynattn
from dynattn import Mass, Threshold, TopK
from dynattn.kernels import cpu
from dynattn.kernels.pattern import Pattern
from dynattn.methods import NM
from tests.covering import part
from tests.kernels.cpu.tiles import building

pytestmark = pytest.mark.skipif(not cpu.is_available(), reason="the kernels are not built")

ENGINES = [engine for engine in cpu.TILE_ENGINES if cpu.is_available() and cpu.isa_available(engine)]
METHODS = [TopK(k=7), TopK(ratio=0.25, floor=3), Threshold(0.01), Threshold(0.5), Mass(0.95), Mass(0.41)]
LENGTHS = [(1, 1), (9, 70), (33, 5), (64, 64), (65, 197), (20, 600)]
MASKS = ["none", "padding", "first", "pairs", "bias", "alone"]
Method = TopK | Threshold | Mass


def masked(kind: str, q_len: int, kv_len: int) -> Tensor | None:
    some = torch.rand(2, 4, q_len, kv_len, generator=torch.Generator().manual_seed(1))
    return {
        "none": None,
        "padding": some[:, :1, :1] < 0.7,
        "first": torch.arange(kv_len).view(1, 1, 1, -1) < 70,
        "pairs": some[:, :1] < 0.8,
        "bias": (some * 16).round().div(4).masked_fill(some < 0.3, -math.inf).bfloat16(),
        "alone": some < 0.02,
    }[kind]


def inputs(q_len: int, kv_len: int, ties: bool) -> list[Tensor]:
    """Scores of quarters, which are exact. With ``ties`` they are few, and keys are the same in runs."""
    generator = torch.Generator().manual_seed(q_len + kv_len)
    query = torch.randint(-4, 5, (2, 4, q_len, 32), generator=generator) / 4
    key = torch.randint(-4, 5, (2, 2, kv_len, 32), generator=generator) / (1 if ties else 4)
    if ties:
        query, key = query.round(), key[:, :, torch.arange(kv_len) // 40 * 40]
    value = torch.randn(2, 2, kv_len, 40, generator=generator)
    return [x.bfloat16() for x in (query, key, value)]


def run(
    engine: str | ctypes.CDLL, tensors: list[Tensor], mask: Tensor | None, method: Method, causal: bool
) -> Tensor:  # fmt: skip
    query, key, value = tensors
    out = torch.full((*query.shape[:3], value.shape[3]), math.nan, dtype=query.dtype)
    seen = None if mask is None else mask.expand(*query.shape[:3], key.shape[2])
    isa = engine if isinstance(engine, str) else "tiles-portable"
    pattern = Pattern.of(NM(1, 1), causal, 1.0)
    prepared = cpu.prepare_row_forward(query, key, value, seen, out, method.row_rule(), pattern, isa)
    function = cpu.forward("row_forward") if isinstance(engine, str) else engine.dynattn_row_forward
    cpu.forward_again(function, query, key, value, seen, out, prepared)
    return out


def check(engine: str | ctypes.CDLL, tensors: list[Tensor], mask: Tensor | None, method: Method, causal: bool) -> None:
    """Output of the same choice: the weights are bfloat16 numbers, and so are outputs."""
    wide = [x.float() for x in tensors]
    bias = mask if mask is None or mask.dtype == torch.bool else mask.float()
    want = run(cpu.best_isa(), wide, bias, method, causal)
    got = run(engine, tensors, mask, method, causal).float()
    torch.testing.assert_close(got, want, atol=2.0**-6, rtol=2.0**-6)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("method", METHODS, ids=str)
@pytest.mark.parametrize("kind", MASKS)
def test_the_choice_is_that_of_single_rows(engine: str, method: Method, kind: str) -> None:
    for lengths, causal, ties in itertools.product(LENGTHS, (False, True), (False, True)):
        check(engine, inputs(*lengths, ties), masked(kind, *lengths), method, causal)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("bad", [math.nan, math.inf, 1e38])
@pytest.mark.parametrize("which", [0, 1, 2])
def test_numbers_that_tiles_do_not_hold_are_left_to_others(engine: str, bad: float, which: int) -> None:
    tensors = inputs(40, 80, False)
    tensors[which][1, 1, 3, 2] = bad
    for method in (TopK(k=7), Threshold(0.01), Mass(0.9)):
        want = run(cpu.best_isa(), tensors, None, method, False)
        torch.testing.assert_close(
            run(engine, tensors, None, method, False), want, equal_nan=True, atol=0.02, rtol=0.02
        )


@pytest.mark.parametrize("engine", ENGINES)
def test_a_bias_that_is_not_finite_is_left_to_others(engine: str) -> None:
    tensors, bias = inputs(40, 80, False), torch.zeros(40, 80)
    bias[3, 5] = math.inf
    bias[4] = torch.finfo(torch.float32).min
    want = run(cpu.best_isa(), tensors, bias, Mass(0.9), False)
    got = run(engine, tensors, bias, Mass(0.9), False)
    torch.testing.assert_close(got, want, equal_nan=True, atol=0.02, rtol=0.02)


def test_scores_far_apart_and_all_the_same() -> None:
    query, key, value = inputs(20, 300, False)
    for factor in (0.0, 64.0):
        for method in METHODS:
            check("tiles-portable", [query * factor, key, value], None, method, True)


def test_asked_for_by_name_and_with_more_than_the_output() -> None:
    query, key, value = inputs(40, 80, False)
    plan = dynattn.explain(query, key, value, Mass(0.9), backend="cpu-tiles-portable")
    assert "zeros in place of dropped weights" in plan.reason
    with pytest.raises(RuntimeError, match="tiles choose rows for the output alone"):
        dynattn.attention(query, key, value, Mass(0.9), backend="cpu-tiles-portable", return_aux=True)


BUGS = [
    ("row_line.h", "lost[lane] : static_cast", "0.0f : static_cast"),
    ("row_line.h", "greater(scores, score) & later", "greater(scores, score)"),
    ("row_line.h", "= more ? few.key[last] : INFINITY", "= INFINITY"),
    ("row_line.h", "share <= ties - 1.0f ? number_of_tie", "share > ties ? number_of_tie"),
    ("row_line.h", "lines.last[lane] = number_of_tie(group, lane, largest, 1)", "lines.last[lane] = INFINITY"),
    ("row_line.h", "(1.0f - kLacking)", "0.5f"),
    ("rows.h", "& ~late", ""),
    ("rows.h", "if (allowed.all) continue;", "continue;"),
]


def agrees(engine: ctypes.CDLL, method: Method, lengths: tuple[int, int], ties: bool, kind: str) -> bool:
    try:
        check(engine, inputs(*lengths, ties), masked(kind, *lengths), method, kind == "none")
    except AssertionError:
        return False
    return True


@pytest.mark.skipif(building.unavailable_reason() is not None, reason=str(building.unavailable_reason()))
@pytest.mark.parametrize("number", part(range(len(BUGS)), 3, str))
def test_a_bug_is_seen(number: int) -> None:
    file, right, wrong = BUGS[number]
    library = building.with_bug(f"tiles/{file}", right, wrong)
    cases = itertools.product(METHODS, ((65, 197), (20, 600)), (True, False), ("first", "none"))
    assert any(not agrees(library, *case) for case in cases)
