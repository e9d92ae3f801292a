"""What the kernels of linear layers refuse, whoever calls them."""

from __future__ import annotations

import pytest
import torch

from dynattn.kernels import cpu
from dynattn.kernels.cpu import linear_calls
from tests.kernels.cpu.linear.calling import layer, outputs, rows

pytestmark = pytest.mark.skipif(not cpu.is_available(), reason=cpu.unavailable_reason() or "")


def test_arguments_out_of_their_range_never_reach_memory() -> None:
    its = layer(9, 8, 8, torch.float32)
    with pytest.raises(RuntimeError, match="linear_rows: an argument is out of its range"):
        rows(its.x, its.weight, None, its.keep_inputs, "portable")
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


def test_tile_engines_have_none_of_these() -> None:
    its = layer(1, 8, 8, torch.float32)
    with pytest.raises(RuntimeError, match="does not run the instruction set"):
        rows(its.x, its.weight, None, its.keep_inputs, "tiles-portable")
