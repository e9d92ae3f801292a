"""An exact count of every row, by size times norm."""

from __future__ import annotations

import pytest
import torch

from dynattn.sparsity import WINA
from tests.sparsity.oracle import largest, rows, site


@pytest.mark.parametrize("keep_ratio", [0.01, 0.3, 0.5, 0.97, 1.0])
@pytest.mark.parametrize("wide", [1, 7, 40])
def test_the_largest_weighted_sizes_stay(keep_ratio, wide):
    torch.manual_seed(0)
    x, weight = (torch.randn(6, wide) * 2).round(), torch.randn(5, wide)
    count = round(keep_ratio * wide)
    scores = x.abs() * weight.norm(dim=0)
    expected = rows(scores, lambda row: largest([(size, i) for i, size in enumerate(row)], count))
    found = WINA(keep_ratio).keep(x, site(weight))
    assert torch.equal(found, expected)
    assert found.sum(1).eq(count).all()


def test_a_nan_is_never_dropped_and_beats_what_is_infinite():
    x = torch.ones(1, 6)
    x[0, 1], x[0, 4] = torch.inf, torch.nan
    weight = torch.ones(1, 6)
    assert WINA(0.2).keep(x, site(weight))[0].nonzero().flatten().tolist() == [1, 4]
    weight[0, 1] = 0  # infinity times nothing
    assert WINA(0.2).keep(x, site(weight))[0, [1, 4]].all()


def test_no_other_choice_leaves_a_smaller_error_where_columns_are_orthogonal():
    torch.manual_seed(0)
    basis = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64)).Q
    weight = basis * torch.rand(6, dtype=torch.float64).add(0.1)  # [out, in]
    x = torch.randn(1, 6, dtype=torch.float64)
    kept = WINA(0.5).keep(x, site(weight))

    def error(keep: torch.Tensor) -> float:
        return float((x.where(keep, 0) @ weight.T - x @ weight.T).norm())

    every = (torch.tensor([[int(bit) for bit in f"{number:06b}"]]).bool() for number in range(64))
    assert error(kept) == pytest.approx(min(error(keep) for keep in every if keep.sum() == 3))


def test_names_and_refusals():
    assert WINA.from_name("wina-0.5") == WINA(0.5)
    assert WINA.from_name("wina-5") is None
    with pytest.raises(ValueError, match="WINA: keep_ratio must be"):
        WINA(1.5)
    with pytest.raises(TypeError, match="WINA: keep_ratio must be a float"):
        WINA(1)
