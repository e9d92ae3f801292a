"""The largest of every row, with the ties settled: what the methods that rank scores share."""

from __future__ import annotations

import torch
from torch import Tensor


def largest(scores: Tensor, count: Tensor | int) -> Tensor:
    """True for the ``count`` largest scores of each row.

    Ties go to the lower index, and NaN counts as the largest, so that it is kept and reaches the output.

    Args:
        scores: (..., length), any dtype that sorts.
        count: how many of each row, an int or (...,); more than there are means all.

    Returns:
        bool, of the shape of ``scores``.
    """
    order = scores.sort(dim=-1, descending=True, stable=True).indices
    count = count.unsqueeze(-1) if isinstance(count, Tensor) else count
    first = torch.arange(scores.shape[-1], device=scores.device) < count
    return torch.zeros_like(scores, dtype=torch.bool).scatter_(-1, order, first.expand_as(order))
