"""N of every M inputs, by loops; a NaN always."""

from __future__ import annotations

import pytest
import torch

from dynattn.sparsity import NMActivations
from tests.sparsity.oracle import groups, rows, site


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize(("n", "m", "stride"), [(1, 2, 1), (2, 4, 1), (8, 16, 1), (3, 5, 1), (2, 4, 3), (1, 2, 16)])
@pytest.mark.parametrize("wide", [1, 19, 64])
def test_each_group_keeps_its_largest_and_a_tail_what_it_has(n, m, stride, norm, wide):
    torch.manual_seed(0)
    x, weight = (torch.randn(5, wide) * 2).round(), torch.randn(3, wide)  # on a grid: sizes tie
    norms = weight.norm(dim=0) if norm else torch.ones(wide)
    expected = rows(x.abs() * norms, lambda row: groups(row, n, m, stride))
    assert torch.equal(NMActivations(n, m, stride, norm).keep(x, site(weight)), expected)


@pytest.mark.parametrize("norm", [False, True])
def test_a_nan_is_never_dropped(norm):
    x = torch.ones(2, 8)
    x[0, 3], x[0, 5], x[0, 6] = torch.inf, torch.nan, torch.nan
    keep = NMActivations(1, 4, norm=norm).keep(x, site(torch.ones(2, 8)))
    assert keep[0].nonzero().flatten().tolist() == [3, 5, 6]
    assert keep[1].nonzero().flatten().tolist() == [0, 4]


def test_sizes_in_bfloat16_do_not_tie_by_rounding():
    weight = torch.tensor([[1.0, 1.001]])
    keep = NMActivations(1, 2, norm=True).keep(torch.ones(1, 2, dtype=torch.bfloat16), site(weight))
    assert keep.tolist() == [[False, True]]


def test_names_and_refusals():
    assert NMActivations(8, 16).name == "nmact-8-16"
    assert NMActivations(8, 16, 16, True).name == "nmact-8-16-x16-norm"
    assert NMActivations.from_name("nmact-2-4-x8") == NMActivations(2, 4, 8)
    assert NMActivations.from_name("nm-2-4") is None
    with pytest.raises(ValueError, match="NMActivations: n must be between 1 and m"):
        NMActivations(5, 4)
    with pytest.raises(ValueError, match="NMActivations: m \\* stride must be at most 256"):
        NMActivations(8, 16, 32)
    with pytest.raises(TypeError, match="NMActivations: n must be an int"):
        NMActivations(1.0, 2)  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError, match="NMActivations: norm must be a bool"):
        NMActivations(1, 2, 1, 1)  # pyright: ignore[reportArgumentType]
