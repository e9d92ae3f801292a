"""The trained predictor of dynamic sparse attention, which guesses attention scores from a layer's input.

    s̃ = quantised(X R W_q) quantised(X R W_k)ᵀ,    loss = task + λ · mean (s - s̃)² over allowed pairs

It is run beside a model by :mod:`dynattn.integrations.dsa`.

Source: arXiv:2110.11299.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from dynattn.methods.dsa import BITS, projection, quantise


class DSAPredictor(nn.Module):
    """Guess the attention scores of every head of a layer from the layer's input, in few dimensions and few bits.

        s̃_h = step_q · levels_q · (step_k · levels_k)ᵀ,    levels · step ≈ X R W_q,h and X R W_k,h

    R ∈ √(3/k) · {-1, 0, 1}^(width × k) is fixed; the W of a head, k × k each, are learnt. Rounding to levels passes
    gradients straight through, so that the W learn to bear it.

    Args:
        width: the width of the layer's input.
        heads: how many query heads the layer has.
        rank: k.
        bits: how many bits a level has, 4 or 8.
        seed: the seed of R.

    Raises:
        ValueError: an argument is out of its range.

    Source: arXiv:2110.11299; straight-through gradients, arXiv:1308.3432.
    """

    projection: Tensor

    def __init__(self, width: int, heads: int, rank: int, *, bits: int = 4, seed: int = 0) -> None:
        super().__init__()
        if min(width, heads, rank) < 1 or rank > width:
            raise ValueError(
                f"DSAPredictor: width, heads and rank must be at least 1 and rank at most width: got {width}, {heads}, "
                f"{rank}; the paper takes a rank of 0.1 to 0.25 of the width"
            )
        if bits not in BITS:
            raise ValueError(f"DSAPredictor: bits must be one of {BITS}: got {bits}; try {BITS[0]}")
        self.bits = bits
        self.register_buffer("projection", projection(width, rank, seed).float().to(torch.get_default_device()))
        # X R Rᵀ Xᵀ approximates X Xᵀ, the sum of `width` products; brought to the size of a scaled score.
        start = width**-0.25 * torch.eye(rank).repeat(heads, 1, 1)
        self.query_map = nn.Parameter(start.clone())
        self.key_map = nn.Parameter(start.clone())

    def forward(self, x: Tensor) -> Tensor:
        """Guess the scores.

        Args:
            x: (batch, length, width), the layer's input.

        Returns:
            (batch, heads, length, length).
        """
        low = (x.to(self.projection.dtype) @ self.projection).unsqueeze(1)  # [batch, 1, length, rank]
        return self._rounded(low @ self.query_map) @ self._rounded(low @ self.key_map).mT

    def _rounded(self, x: Tensor) -> Tensor:
        found = quantise(x.detach(), self.bits)
        return x + (found.levels * found.step - x).detach()

    def extra_repr(self) -> str:
        width, rank = self.projection.shape
        return f"width={width}, heads={len(self.query_map)}, rank={rank}, bits={self.bits}"


def prediction_loss(predicted: Tensor, scores: Tensor) -> Tensor:
    """``mean (s - s̃)²`` over the allowed pairs, to be added to the task's loss with a factor λ.

    Args:
        predicted: (batch, heads, q_len, kv_len).
        scores: same shape, -inf where the pair is not allowed. Without a graph, the predictor alone learns; with one,
            the model also learns to be predictable, as published.

    Returns:
        A scalar; 0 where nothing is allowed.
    """
    allowed = scores != -math.inf
    difference = (predicted - scores.masked_fill(~allowed, 0.0)).masked_fill(~allowed, 0.0)
    return difference.square().sum() / allowed.sum().clamp(min=1)
