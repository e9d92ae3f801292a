"""Positive random features of the exponential kernel, in the log domain.

    φ(x)_f = exp(w_f · x - ‖x‖² / 2) / √m,    w_f ~ N(0, I),    E[φ(x) · φ(y)] = exp(x · y)

With orthogonal features the w_f of a block of head_dim are orthogonal to each other, each still N(0, I): the estimate
stays unbiased and varies less.

Source: Performer, arXiv:2009.14794.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def directions(features: int, head_dim: int, orthogonal: bool, generator: torch.Generator) -> Tensor:
    """The w of the equation, (features, head_dim), float64 on the CPU: the same numbers for every device."""
    normal = torch.randn(features, head_dim, dtype=torch.float64, generator=generator, device="cpu")
    if not orthogonal:
        return normal
    blocks = torch.randn(
        -(-features // head_dim), head_dim, head_dim, dtype=torch.float64, generator=generator, device="cpu"
    )
    turned, upper = torch.linalg.qr(blocks)
    # QR is unique, and its factor uniform among the rotations, only with a positive diagonal.
    turned = turned * upper.diagonal(dim1=-2, dim2=-1).sign().unsqueeze(-2)
    lengths = torch.linalg.vector_norm(normal, dim=-1, keepdim=True)  # those of independent features
    return lengths * turned.mT.reshape(-1, head_dim)[:features]


def log_features(x: Tensor, w: Tensor) -> Tensor:
    """``log φ(x)``.

    Args:
        x: (..., head_dim), scaled by the root of attention's scale.
        w: (features, head_dim), see :func:`directions`.

    Returns:
        (..., features).
    """
    return x @ w.T - x.square().sum(-1, keepdim=True) / 2 - math.log(w.shape[0]) / 2
