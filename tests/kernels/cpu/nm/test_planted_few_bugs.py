"""Bugs put into the values of few queries on purpose: each must be seen by the definition."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from dynattn.methods import NM
from tests.covering import part
from tests.kernels.cpu import planted

ENTRY = Path(__file__).parent / "few_entry.cpp"

pytestmark = planted.NEEDED

BUGS = {
    "what is not finite is lost": ("value_rows.h", "if (!keys.own && !are_finite<kR, kC>(acc)) return false;", ""),
    "what is not finite is the first piece": ("value_rows.h", "left |= uint64_t{1} << piece", "left |= 1"),
    "what is not kept has a weight": ("value_rows.h", "max(load(weights + i), zero())", "load(weights + i)"),
    "every row has the first row's weights": (
        "value_rows.h", "scratch.weights[r * plan.tile + i]", "scratch.weights[i]",
    ),
    "every row keeps what the first row keeps": (
        "value_rows.h", "take_kept(plan, weights + r * plan.tile,", "take_kept(plan, weights,",
    ),
    "the last piece is forgotten": ("value_rows.h", ">> (64 - pieces)", ">> (64 - pieces) >> 1"),
    "pieces lie as if all were full": (
        "value_rows.h", "first = vectors * piece / pieces", "first = piece * value_columns<kR>()",
    ),
    "a whole tile is in the order of keys": (
        "value_rows.h", "scratch.values[i] = rows.row[plan.key_of[i]]", "scratch.values[i] = rows.row[i]",
    ),
    "a list is in the order of keys": (
        "value_rows.h", "scratch.values[count] = rows.row[plan.key_of[at]]", "scratch.values[count] = rows.row[at]",
    ),
    "a whole tile is the next one": (
        "value_rows.h", "scratch.values[i] = rows.row[plan.key_of[i]]", "scratch.values[i] = rows.next[plan.key_of[i]]",
    ),
    "a whole tile is the first head's": (
        "value_rows.h", "plan.key_of[i]] + rows.shift;", "plan.key_of[i]];",
    ),
    "a list is the first head's": ("value_rows.h", "plan.key_of[at]] + rows.shift;", "plan.key_of[at]];"),
    "what is converted is one head's": ("value_rows.h", "rows.row[key] + rows.shift, args", "rows.row[key], args"),
    "values are not converted": ("few_range.h", "if (!few.values_in_place) values", "if (false) values"),
    "rows share one output": ("few_range.h", "rows.out + r * rows.out_stride,\n", "rows.out,\n"),
}  # fmt: skip


def laid(rows: torch.Tensor) -> torch.Tensor:
    """The same rows, those of all heads for a key side by side, with others behind the last: where a bug may lead."""
    kv_len = rows.shape[2]
    return torch.nn.functional.pad(rows, (0, 0, 0, 200)).transpose(1, 2).contiguous().transpose(1, 2)[:, :, :kv_len]


def fails(library: Any, monkeypatch: pytest.MonkeyPatch, grid: Callable, check: Callable) -> int:
    """How many of a few calls differ from the definition."""

    planted.take(library, monkeypatch)
    failed = 0
    for dtype in (torch.float32, torch.float16):
        query, key, value = (x.to(dtype) for x in grid(10, 2, 1, 2500, 8, 20))
        mask = torch.rand(1, 10, 1, 2500, generator=torch.Generator().manual_seed(1)) < 0.7
        odd = value.clone()
        odd[..., ::50, 3], odd[..., 7::90, 18] = math.inf, math.nan
        for method in (NM(1, 1), NM(1, 2), NM(1, 8)):
            for values, allowed in ((value, None), (value, mask), (odd, mask)):
                try:
                    check(query, laid(key), laid(values), method, "portable", mask=allowed)
                except AssertionError:
                    failed += 1
    return failed


@pytest.mark.sweep
def test_without_a_bug_nothing_is_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, grid: Callable, check: Callable
) -> None:
    assert fails(planted.build(ENTRY, tmp_path), monkeypatch, grid, check) == 0


@pytest.mark.parametrize("bug", part(BUGS, 8, str))
def test_bug_is_seen(
    bug: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, grid: Callable, check: Callable
) -> None:
    file, right, wrong = BUGS[bug]
    assert fails(planted.build(ENTRY, tmp_path, f"nm/{file}", right, wrong), monkeypatch, grid, check) > 0
