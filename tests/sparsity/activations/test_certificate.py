"""Bounds without the whole product."""

from __future__ import annotations

import pytest
import torch

from dynattn.sparsity import bound, kept_share


def _case(tokens: int = 50, wide: int = 12, out: int = 7) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(tokens, wide, dtype=torch.float64, generator=generator)
    weight = torch.randn(out, wide, dtype=torch.float64, generator=generator)
    keep = torch.rand(tokens, wide, generator=generator) < torch.linspace(0, 1, tokens).unsqueeze(1)
    return x, weight, keep


def test_no_error_is_larger_than_its_bound_and_one_dropped_input_meets_it():
    x, weight, keep = _case()
    error = (x @ weight.T - x.where(keep, 0) @ weight.T).norm(dim=1)
    found = bound(x, keep, weight.norm(dim=0))
    assert (error <= found * (1 + 1e-12)).all()
    assert float((error / found.clamp(min=1e-9)).max()) > 0.3
    one = torch.ones_like(keep).scatter_(1, torch.arange(len(x)).remainder(12).unsqueeze(1), False)
    error = (x @ weight.T - x.where(one, 0) @ weight.T).norm(dim=1)
    torch.testing.assert_close(error, bound(x, one, weight.norm(dim=0)))


def test_the_kept_share_is_that_of_the_sizes_by_loops():
    x, weight, keep = _case(tokens=4)
    norms = [sum(float(w) ** 2 for w in column) ** 0.5 for column in weight.T]
    for row, kept, found in zip(x.tolist(), keep.tolist(), kept_share(x, keep, torch.tensor(norms)), strict=True):
        sizes = [abs(value) * norm for value, norm in zip(row, norms, strict=True)]
        expected = sum(size for size, one in zip(sizes, kept, strict=True) if one) / sum(sizes)
        assert float(found) == pytest.approx(expected)
    assert kept_share(torch.zeros(1, 12), keep[:1], torch.ones(12)).tolist() == [1.0]


def test_the_error_is_known_where_columns_are_orthogonal():
    x, _, keep = _case()
    basis = torch.linalg.qr(torch.randn(20, 12, dtype=torch.float64)).Q
    weight = basis * torch.rand(12, dtype=torch.float64).add(0.1)
    error = (x @ weight.T - x.where(keep, 0) @ weight.T).square().sum(1)
    sizes = (x.abs() * weight.norm(dim=0)).square()
    torch.testing.assert_close(error, sizes.masked_fill(keep, 0).sum(1))
