"""Keys in the order of their clusters: k-means from evenly spaced keys, which needs no random numbers.

    centre c at first = key ⌊(c + 1/2) · n / C⌋,   C = ⌈n / size⌉
    cluster(j)        = argmin_c ‖k_j - centre_c‖²,  the first of several
    centre c          = mean of the keys of cluster c; an empty cluster keeps its own

The order lists the keys of cluster 0, then those of cluster 1, and so on, each in their own order. The centres are
renewed ``ROUNDS`` times, so that the clusters cost ``ROUNDS + 1`` products of all keys and all centres.

Source: k-means for attention with permuted tokens, Sparse VideoGen2, arXiv:2505.18875; the beginning is this library's.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dynattn.maths.scores import arithmetic_dtype

ROUNDS = 2


@torch.no_grad()
def order(key: Tensor, size: int) -> Tensor:
    """The numbers of the keys in the order of their clusters.

    Args:
        key: (batch, heads, kv_len, head_dim).
        size: keys of a cluster, on average.

    Returns:
        int64 (batch, heads, kv_len).
    """
    kv_len = key.shape[2]
    count = -(-kv_len // size)
    x = key.detach().to(arithmetic_dtype(key.dtype))
    first = (2 * torch.arange(count, device=key.device) + 1) * kv_len // max(1, 2 * count)
    centres = x[:, :, first]
    for _ in range(ROUNDS):
        cluster = _nearest(x, centres)
        sums = torch.zeros_like(centres).scatter_add_(2, cluster.unsqueeze(-1).expand_as(x), x)
        members = torch.zeros_like(centres[..., 0]).scatter_add_(2, cluster, torch.ones_like(x[..., 0])).unsqueeze(-1)
        centres = torch.where(members > 0, sums / members.clamp(min=1), centres)
    return _nearest(x, centres).argsort(dim=-1, stable=True)


def _nearest(x: Tensor, centres: Tensor) -> Tensor:
    """The number of each key's nearest centre, (batch, heads, kv_len)."""
    if not centres.shape[2]:
        return x.new_zeros(x.shape[:3], dtype=torch.int64)
    near = x @ centres.mT - centres.square().sum(-1).unsqueeze(2) / 2
    return near.argmax(-1)
