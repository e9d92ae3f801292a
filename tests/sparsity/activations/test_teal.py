"""Sizes above one threshold of a layer."""

from __future__ import annotations

import pytest
import torch

from dynattn.sparsity import TEAL
from tests.sparsity.oracle import site


def test_what_is_above_the_threshold_stays_and_so_does_a_nan():
    x = torch.tensor([[0.5, -0.6, 0.0, 0.4], [torch.nan, -0.5, torch.inf, -2.0]])
    keep = TEAL(0.5).keep(x, site(torch.ones(1, 4), [0.5]))
    assert keep.tolist() == [[False, True, False, False], [True, False, True, True]]


def test_without_a_threshold_nothing_is_chosen():
    with pytest.raises(ValueError, match=r"TEAL: there must be a threshold for 0.q: it has none; take"):
        TEAL(0.5).keep(torch.ones(1, 4), site(torch.ones(1, 4)))


def test_names_and_refusals():
    assert TEAL.from_name("teal-0.25") == TEAL(0.25)
    assert TEAL.from_name("teal-1") is None
    with pytest.raises(ValueError, match="TEAL: keep_ratio must be"):
        TEAL(0.0)
    with pytest.raises(TypeError, match="TEAL: keep_ratio must be a float"):
        TEAL(1)
