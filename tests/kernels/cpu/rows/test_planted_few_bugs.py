"""Bugs put into the path of few queries on purpose: each must be seen by the definition."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from dynattn.methods import Mass, TopK
from tests.covering import part
from tests.kernels.cpu import planted

ENTRY = Path(__file__).parent / "few_entry.cpp"

pytestmark = planted.NEEDED

BUGS = {
    "what is forbidden may be NaN": ("few_scores.h", "forbid_by_bias(scores, bias, plan.tile);", ""),
    "every tile is the first": ("few_scores.h", "plan.row_floats + first_key, scores", "plan.row_floats, scores"),
    "heads have the first head's queries": (
        "few_scores.h", "copy_queries(call, scratch, first_head, i)", "copy_queries(call, scratch, 0, i)",
    ),
    "nothing is NaN": ("few_queries.h", "plan.careful || !are_plain(", "plan.careful && !are_plain("),
    "every query is the first": ("few_queries.h", "one.block.first = query,", "one.block.first = 0,"),
    "a range is forgotten": ("few_queries.h", "range = 1; range < call.ranges", "range = 2; range < call.ranges"),
    "one turn's heads are the next one's": (
        "few_queries.h", "head_of, (first_unit + unit) * call.together", "head_of, unit * call.together",
    ),
    "a turn does not count anew": ("few_queries.h", "job.finished[unit] = 0;", ""),
    "values are the first tile's": ("few_values.h", "first + tile * plan.tile * stride, stride", "first, stride"),
    "values are the first head's": ("few_values.h", "args.value_strides, number);", "args.value_strides, 0);"),
    "what was converted for one tile is taken for the next": (
        "few_values.h", "if (!call.values_in_place) memset(", "if (!call.values_in_place && tile == 0) memset(",
    ),
    "one row's weights are the next one's": (
        "few_values.h", "store(weights + i, broadcast(-1.0f));", "if (r == 0) store(weights + i, broadcast(-1.0f));",
    ),
    "what is not kept is multiplied by 0": ("few_values.h", "broadcast(-1.0f)", "zero()"),
    "what is not finite is lost": ("few_values.h", "left != 0 && r < kR;", "false && r < kR;"),
}  # fmt: skip


def fails(library: Any, monkeypatch: pytest.MonkeyPatch, grid: Callable, check: Callable) -> int:
    """How many of a few calls differ from the definition."""

    planted.take(library, monkeypatch)
    failed = 0
    for dtype in (torch.float32, torch.bfloat16):
        for batch, heads, kv_heads, q_len, kv_len, dim in (
            (1, 4, 2, 2, 1100, 8),
            (1, 3, 1, 1, 700, 12),
            (70, 4, 2, 1, 8000, 4),
        ):
            query, key, value = (x.to(dtype) for x in grid(heads, kv_heads, q_len, kv_len, dim, dim, batch=batch))
            mask = torch.rand(batch, heads, q_len, kv_len, generator=torch.Generator().manual_seed(1)) < 0.7
            mask[:, :, :, 900:], mask[0, 0, 0] = False, False
            bad = key.clone()
            bad[0, 0, 40, 2], bad[0, 0, 1000 % kv_len, 1] = math.nan, math.nan
            odd = value.clone()
            odd[0, 0, ::50, 3] = math.inf
            calls = [
                (query, key, value, None),
                (query, key, odd, None),
                (query, bad, value, None),
                (query, bad, value, mask),
            ]
            several_turns = batch > 1
            for method in (TopK(ratio=0.1),) if several_turns else (TopK(ratio=0.1), Mass(0.7137)):
                for *tensors, allowed in calls[:1] if several_turns else calls:
                    try:
                        check(*tensors, method, "portable", mask=allowed, causal=True, alone=True)
                    except AssertionError:
                        failed += 1
    return failed


@pytest.mark.sweep
def test_without_a_bug_nothing_is_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, grid: Callable, check: Callable
) -> None:
    assert fails(planted.build(ENTRY, tmp_path), monkeypatch, grid, check) == 0


@pytest.mark.parametrize("bug", part(BUGS, 16, str))
def test_bug_is_seen(
    bug: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, grid: Callable, check: Callable
) -> None:
    file, right, wrong = BUGS[bug]
    assert fails(planted.build(ENTRY, tmp_path, f"rows/{file}", right, wrong), monkeypatch, grid, check) > 0
