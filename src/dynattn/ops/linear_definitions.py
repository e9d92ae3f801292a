"""What the operators of :mod:`dynattn.ops.linear` stand for, in plain PyTorch, which autograd, transforms and compilers
follow."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dynattn.maths.scores import arithmetic_dtype
from dynattn.ops.nm_weights import unpacked


def rows(x: Tensor, weight_t: Tensor, bias: Tensor | None, keep: Tensor, scale: Tensor | None = None) -> Tensor:
    """``(x ∘ keep) Wᵀ + bias``."""
    return _linear(x.masked_fill(~keep, 0), weight_t.t(), bias, scale)


def outputs(x: Tensor, weight: Tensor, bias: Tensor | None, keep: Tensor, scale: Tensor | None) -> Tensor:
    """``(x Wᵀ + bias) ∘ keep``."""
    return _linear(x, weight, bias, scale).masked_fill(~keep, 0)


def nm_weight(x: Tensor, values: Tensor, places: Tensor, bias: Tensor | None, n: int, m: int) -> Tensor:
    """``x W̃ᵀ + bias``."""
    return nn.functional.linear(x, unpacked(values, places, n, m, x.shape[1]), bias)


def nm_act(x: Tensor, weight_t: Tensor, bias: Tensor | None, factors: Tensor | None, n: int, m: int) -> Tensor:
    """``(x ∘ NM(|x| ∘ factors)) Wᵀ + bias``."""
    return rows(x, weight_t, bias, nm_kept(x, factors, n, m))


def threshold(x: Tensor, weight_t: Tensor, bias: Tensor | None, thresholds: Tensor) -> Tensor:
    """``(x ∘ (|x| > thresholds)) Wᵀ + bias``; a NaN stays."""
    size = x.detach().abs()
    return rows(x, weight_t, bias, (size > thresholds) | size.isnan())


def nm_kept(x: Tensor, factors: Tensor | None, n: int, m: int) -> Tensor:
    """The ``n`` largest ``|x| ∘ factors`` of every ``m`` in a row, (tokens, in) bool: those that fewer than ``n``
    others beat. Of equal ones the first beats the others. A NaN stays, and counts as infinity."""
    score = x.detach().abs() if factors is None else x.detach().abs() * factors
    inputs = x.shape[1]
    ranked = nn.functional.pad(score.masked_fill(score.isnan(), torch.inf), (0, -inputs % m), value=-1.0)
    groups = ranked.unflatten(-1, (-1, m))
    this, other = groups.unsqueeze(-1), groups.unsqueeze(-2)  # [tokens, groups, m, m]
    before = torch.ones(m, m, dtype=torch.bool, device=x.device).tril(-1)
    beaten = ((other > this) | ((other == this) & before)).sum(-1)
    return (beaten < n).flatten(-2)[..., :inputs] | score.isnan()


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None, scale: Tensor | None) -> Tensor:
    if scale is None:
        return nn.functional.linear(x, weight, bias)
    wide = arithmetic_dtype(x.dtype)  # weights of int8 are exact there, and the result is rounded once
    y = nn.functional.linear(x.to(wide), weight.to(wide)) * scale
    return (y if bias is None else y + bias).to(x.dtype)
