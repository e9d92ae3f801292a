"""The masks that kernels which choose by rows are tried with."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def masks(q_len: int, kv_len: int) -> list[Tensor | None]:
    """None, pairs with an emptied row, padding, and a bias that forbids the same pairs."""
    generator = torch.Generator().manual_seed(1)
    allowed = torch.rand(1, 1, q_len, kv_len, generator=generator) < 0.7
    allowed[:, :, -1] = False  # a row with nothing allowed
    bias = torch.randint(-2, 3, (q_len, kv_len), generator=generator).float()
    padding = torch.arange(kv_len) < max(1, kv_len * 2 // 3)
    return [None, allowed, padding.view(1, 1, 1, -1), bias.where(allowed[0, 0], -math.inf)[None, None]]
