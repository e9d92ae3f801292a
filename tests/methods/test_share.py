"""Shares are counted in whole numbers, and their texts give them back."""

from __future__ import annotations

import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dynattn.methods import share


@given(st.floats(1e-6, 1.0))
def test_a_text_is_decimal_and_gives_the_number_back(ratio: float) -> None:
    assert re.fullmatch(share.NUMBER, share.text(ratio))
    assert float(share.text(ratio)) == ratio


@given(st.integers(1, 1000), st.integers(0, 10**6))
def test_a_decimal_share_is_rounded_up_exactly(thousandths: int, length: int) -> None:
    want = -(-thousandths * length // 1000)
    assert share.ceil(thousandths / 1000, length) == want
    assert share.ceil(thousandths / 1000, torch.tensor([length])).tolist() == [want]


def test_counts_have_a_floor_and_no_more_than_there_are() -> None:
    allowed = torch.tensor([0, 1, 5, 10, 100])
    assert share.count(0.07, allowed, floor=4).tolist() == [0, 1, 4, 4, 7]
    assert share.count(0.07, allowed, floor=0).tolist() == [0, 1, 1, 1, 7]


@pytest.mark.parametrize(("ratio", "error"), [(1, TypeError), ("0.5", TypeError), (0.0, ValueError), (1.1, ValueError)])
def test_what_is_no_share_is_refused(ratio: float, error: type[Exception]) -> None:
    with pytest.raises(error, match=r"TopK: ratio must be .*: got"):
        share.check("TopK", ratio)


@pytest.mark.parametrize(
    ("floor", "error"), [(True, TypeError), (1.0, TypeError), (-1, ValueError), (2**31, ValueError)]
)
def test_what_is_no_floor_is_refused(floor: int, error: type[Exception]) -> None:
    with pytest.raises(error, match=r"TopK: floor must be .*: got"):
        share.check_floor("TopK", floor)


def test_a_floor_stands_in_a_name_where_it_is_not_the_default() -> None:
    assert share.floor_text(share.DEFAULT_FLOOR) == ""
    assert re.fullmatch(share.FLOOR, share.floor_text(8))["floor"] == "8"  # pyright: ignore[reportOptionalSubscript]
