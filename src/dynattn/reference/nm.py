"""The choice of N:M attention in plain PyTorch: the specification that every kernel is held to.

    kept     = the N largest of every group of M keys, window and sinks, where s > -inf;
               the group of key j is (j // (M·stride), j % stride): its keys stand `stride` apart

What is made of the kept pairs is :mod:`dynattn.reference.pairs`, the same for every method.

Source: arXiv:2203.00091.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dynattn.reference.positions import distance

if TYPE_CHECKING:  # the method's class calls this file
    from dynattn.methods.nm import NM


def choose(s: Tensor, method: NM, offset: int = 0) -> Tensor:
    """The kept pairs: True for the N largest scores of each group, the window and the sinks, where s > -inf.

    NaN counts as the largest score, so that it is kept and reaches the output. Ties go to the lower index.

    Args:
        s: scores (batch, heads, q_len, kv_len), -inf where the pair is not allowed.
        method: what to keep.
        offset: position of the first query on the key axis.

    Returns:
        bool (batch, heads, q_len, kv_len).
    """
    kv_len = s.shape[-1]
    block = method.m * method.stride
    padded = torch.nn.functional.pad(s, (0, -kv_len % block), value=-math.inf)
    # [batch, heads, q_len, blocks, m, stride]: a group is a column of its block.
    groups = padded.unflatten(-1, (padded.shape[-1] // block, method.m, method.stride))
    order = groups.sort(dim=-2, descending=True, stable=True).indices
    kept = torch.zeros_like(groups, dtype=torch.bool).scatter_(-2, order[..., : method.n, :], True)
    kept = kept.flatten(-3)[..., :kv_len]
    kept = kept | (distance(s, offset).abs() < method.window)
    kept = kept | (torch.arange(kv_len, device=s.device) < method.sinks)
    return kept & (s != -math.inf)
