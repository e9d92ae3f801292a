"""The k-th smallest, exactly."""

from __future__ import annotations

import pytest
import torch

from dynattn.sparsity.activations.quantile import Quantile


@pytest.mark.parametrize("values", ["normal", "close", "tied", "wide"])
def test_the_kth_smallest_is_found_wherever_it_is(values):
    torch.manual_seed(0)
    shown = {
        "normal": torch.randn(3, 500).abs(),
        "close": 1 + torch.rand(3, 500) * 1e-4,  # all in one bin of the first round
        "tied": torch.randint(0, 4, (3, 500)).float(),
        "wide": torch.randn(3, 500).mul(20).exp(),
    }[values]
    expected = shown.flatten().sort().values
    for rank in (1, 2, 750, 1499, 1500):
        quantile = Quantile()
        for part in shown:
            quantile.first(part)
        quantile.look_for(rank)
        for part in shown:
            quantile.second(part)
        assert quantile.count == 1500
        assert quantile.value() == float(expected[rank - 1])


def test_a_nan_counts_as_the_largest():
    shown = torch.tensor([2.0, torch.nan, 1.0])
    quantile = Quantile()
    quantile.first(shown)
    quantile.look_for(3)
    quantile.second(shown)
    assert quantile.value() == torch.inf
