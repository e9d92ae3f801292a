"""How many are kept in each layer."""

from __future__ import annotations

import torch

from dynattn.pruning.schedule import counts, schedule


def test_schedule():
    assert schedule(0.25, 3, 0.15) == (1, 0.5, 0.25)
    assert schedule(0.25, 12, 0.15)[:2] == (1, 1)
    assert schedule(0.5, 1, 0.15) == (1,)
    assert counts(0.1, torch.tensor([10, 11, 0])).tolist() == [1, 2, 1]
