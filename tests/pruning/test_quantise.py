"""Quantised numbers, against their definition."""

from __future__ import annotations

import torch

from dynattn.pruning.quantise import split


def test_quantised_numbers():
    x = torch.tensor([-7.0, -3.6, -1.0, 0.0, 1.4, 7.0]).reshape(1, 1, 6, 1)
    whole, high = split(x, torch.ones(1, 6, dtype=torch.bool), 2, 2)  # step 1
    assert whole.flatten().tolist() == [-7, -4, -1, 0, 1, 7]
    assert high.flatten().tolist() == [-8, -4, -4, 0, 0, 4]
    zero = split(torch.zeros(1, 1, 2, 2), torch.ones(1, 2, dtype=torch.bool), 4, 4)
    assert not zero.whole.any()
