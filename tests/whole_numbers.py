"""Inputs of which every sum is exact in any order, for kernels that are held to the definition bit by bit."""

from __future__ import annotations

import torch
from torch import Tensor


def inputs(q_len: int, kv_len: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Query, key and value of small whole numbers, 4 heads on 2: sums are exact in any order, and ties are many."""
    generator = torch.Generator().manual_seed(q_len * 1000 + kv_len)
    shapes = ((2, 4, q_len, 8), (2, 2, kv_len, 8), (2, 2, kv_len, 6))
    return [torch.randint(-2, 3, shape, generator=generator).to(dtype) for shape in shapes]
