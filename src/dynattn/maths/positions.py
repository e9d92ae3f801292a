"""The positions of queries and keys relative to each other."""

from __future__ import annotations

import torch
from torch import Tensor


def distance(s: Tensor, offset: int) -> Tensor:
    """``offset + i - j``: how far key j lies before query i; (q_len, kv_len)."""
    position = torch.arange(s.shape[-2], device=s.device) + offset
    return position.unsqueeze(-1) - torch.arange(s.shape[-1], device=s.device)
