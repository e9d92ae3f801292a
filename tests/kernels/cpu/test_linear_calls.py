"""What the kernels of linear layers refuse, whoever calls them."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from dynattn.kernels import cpu
from dynattn.kernels.cpu import linear_calls
from tests.kernels.cpu.linear.calling import choice, layer, outputs, rows

pytestmark = pytest.mark.skipif(not cpu.is_available(), reason=cpu.unavailable_reason() or "")


def test_arguments_out_of_their_range_never_reach_memory() -> None:
    its = layer(9, 8, 8, torch.float32)
    with pytest.raises(RuntimeError, match="linear_rows: an argument is out of its range"):  # many of bfloat16
        rows(its.x.bfloat16(), its.weight.bfloat16(), None, its.keep_inputs, "portable")
    one = torch.ones(1)
    for by in (
        {}, {"n": 1}, {"n": 2, "m": 2}, {"n": 0, "m": 2}, {"n": 1, "m": 3}, {"n": 1, "m": 32},
        {"n": 1, "m": 2, "thresholds": one}, {"keep": its.keep_inputs, "n": 1, "m": 2},
        {"keep": its.keep_inputs, "thresholds": one},
    ):  # fmt: skip
        given: dict[str, Any] = {"keep": None} | by
        with pytest.raises(RuntimeError, match="linear_rows: an argument is out of its range"):
            rows(its.x, its.weight, None, given.pop("keep"), "portable", **given)
        if "keep" not in by:
            with pytest.raises(RuntimeError, match="linear_choice: an argument is out of its range"):
                choice(its.x, "portable", **by)
    with pytest.raises(RuntimeError, match="linear_outputs: an argument is out of its range"):
        outputs(its.x, its.weight, None, its.keep_outputs, "portable")
    with pytest.raises(RuntimeError, match="linear_rows: an argument is out of its range"):
        rows(its.x[:1].half(), its.weight, None, its.keep_inputs, "portable")
    with pytest.raises(RuntimeError, match="linear_rows: an argument is out of its range"):  # no scale
        rows(its.x[:1], its.weight.to(torch.int8), None, its.keep_inputs, "portable")
    with pytest.raises(RuntimeError, match="linear_rows: an argument is out of its range"):  # rows overlap
        rows(its.x[:1], its.weight[:1].expand(8, 8), None, its.keep_inputs, "portable")
    for n, m in ((2, 2), (0, 2), (1, 3), (1, 8)):
        with pytest.raises(RuntimeError, match="linear_nm_weight: an argument is out of its range"):
            linear_calls.linear_nm_weight(its.x[:1], its.weight, its.weight, None, its.x[:1].clone(), n, m, "portable")


def test_the_numbers_are_the_headers() -> None:
    from tests.kernels.cpu.test_arguments import HEADER

    numbers = f"DYNATTN_LINEAR_TOKENS = {linear_calls.MAX_TOKENS}, DYNATTN_NM_GROUPS = {linear_calls.NM_GROUPS} "
    assert numbers in HEADER.read_text()
    of = ", ".join(map(str, linear_calls.CHOICE_MS[:-1]))
    assert f"of every m = {of} or {linear_calls.CHOICE_MS[-1]} inputs in a row" in HEADER.read_text()


def test_tile_engines_have_none_of_these() -> None:
    its = layer(1, 8, 8, torch.float32)
    with pytest.raises(RuntimeError, match="does not run the instruction set"):
        rows(its.x, its.weight, None, its.keep_inputs, "tiles-portable")
    with pytest.raises(RuntimeError, match="does not run the instruction set"):
        choice(its.x, "tiles-portable", n=1, m=2)
