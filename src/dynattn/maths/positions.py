"""The positions of queries and keys relative to each other."""

from __future__ import annotations

import torch
from torch import Tensor


def distance(s: Tensor, offset: int) -> Tensor:
    """``offset + i - j``: how far key j lies before query i; (q_len, kv_len)."""
    position = torch.arange(s.shape[-2], device=s.device) + offset
    return position.unsqueeze(-1) - torch.arange(s.shape[-1], device=s.device)


def near_or_first(s: Tensor, offset: int, window: int, sinks: int) -> Tensor:
    """Keys that position alone keeps, (q_len, kv_len): nearer to the query than ``window``, or before ``sinks``."""
    return (distance(s, offset).abs() < window) | (torch.arange(s.shape[-1], device=s.device) < sinks)
