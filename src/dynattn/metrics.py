"""The figures by which every method is judged: kept mass, density, output error, and the bound that connects them.

    ρ = Σ_kept softmax(s),    ‖out - dense‖ ≤ (1 - ρ) · diam(V),    diam(V) = max over keys j, l of ‖v_j - v_l‖

The bound holds since ``dense = ρ · out + (1 - ρ) · u``, where u is the average of V over the dropped keys: both out
and u lie in the convex hull of V.

Source: docs/theory.md.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

_BLOCK = 1024  # the distances of so many values to all others are held at a time


class Certificate(NamedTuple):
    """Measured error beside its bound, per row; result of :func:`certify`.

    Attributes:
        error: ``‖out - dense‖``, (batch, heads, q_len).
        bound: ``(1 - kept mass) · diameter``, (batch, heads, q_len).
        holds: whether error <= bound in every row, up to the rounding of the outputs' dtype.
    """

    error: Tensor
    bound: Tensor
    holds: bool


def kept_mass(scores: Tensor, kept: Tensor) -> Tensor:
    """Dense softmax weight that any choice holds: ``Σ_kept softmax(s)``.

    Args:
        scores: (..., kv_len), -inf where the pair is not allowed.
        kept: bool, same shape: the pairs kept.

    Returns:
        (...), between 0 and 1; 1 for a row with nothing allowed.

    Raises:
        ValueError: the shapes differ.
        TypeError: ``kept`` is not bool.
    """
    _check_choice("kept_mass", scores, kept)
    empty = (scores == -math.inf).all(-1)
    weights = scores.masked_fill(empty.unsqueeze(-1), 0.0).softmax(-1)
    return (weights * kept).sum(-1).masked_fill(empty, 1.0)


def density(scores: Tensor, kept: Tensor) -> Tensor:
    """Kept pairs over allowed pairs.

    Args:
        scores: (..., q_len, kv_len), -inf where the pair is not allowed.
        kept: bool, same shape: the pairs kept.

    Returns:
        (...), float32; 1 where nothing is allowed.

    Raises:
        As :func:`kept_mass`.
    """
    _check_choice("density", scores, kept)
    allowed = scores != -math.inf
    pairs = allowed.sum((-2, -1))
    return ((kept & allowed).sum((-2, -1)).float() / pairs.clamp(min=1)).masked_fill(pairs == 0, 1.0)


def relative_error(out: Tensor, dense: Tensor) -> Tensor:
    """``‖out - dense‖ / ‖dense‖``, Frobenius norm over the last two dimensions.

    Args:
        out: (..., q_len, value_dim).
        dense: same shape, the exact result.

    Returns:
        (...), float64; 0 where both are 0.

    Raises:
        ValueError: the shapes differ.
    """
    _check_outputs("relative_error", out, dense)
    error = torch.linalg.vector_norm(out.double() - dense.double(), dim=(-2, -1))
    size = torch.linalg.vector_norm(dense.double(), dim=(-2, -1))
    return torch.where(error == 0, 0.0, error / size)


def cosine(out: Tensor, dense: Tensor) -> Tensor:
    """Cosine of the angle between each row and the exact one.

    Args:
        out: (..., q_len, value_dim).
        dense: same shape, the exact result.

    Returns:
        (..., q_len), float64; 0 where one of the rows is 0.

    Raises:
        ValueError: the shapes differ.
    """
    _check_outputs("cosine", out, dense)
    return torch.nn.functional.cosine_similarity(out.double(), dense.double(), dim=-1, eps=1e-300)


def diameter(value: Tensor) -> Tensor:
    """Largest distance between two values of a head: ``max ‖v_j - v_l‖``, exact.

    Quadratic time in length, linear memory. ``2 · max ‖v_j - mean‖`` is a bound in linear time, at most twice as large.

    Args:
        value: (batch, kv_heads, kv_len, value_dim).

    Returns:
        (batch, kv_heads), in float32, or float64 for float64 values; 0 without keys.
    """
    value = value if value.dtype == torch.float64 else value.float()
    largest = value.new_zeros(value.shape[:2])
    for block in value.split(_BLOCK, dim=2):
        # Differences, not the expansion of the square, which cancels for values close together.
        distances = torch.cdist(block, value, compute_mode="donot_use_mm_for_euclid_dist")
        if distances.numel():
            largest = torch.maximum(largest, distances.amax((-2, -1)))
    return largest


def certify(out: Tensor, dense: Tensor, kept_mass: Tensor, value: Tensor) -> Certificate:
    """Check the error of an output against the bound that its kept mass gives.

        ‖out - dense‖ ≤ (1 - ρ) · diam(V),    row by row

    Rows that keep nothing though keys are allowed (no N:M row does) have no such bound.

    Args:
        out: (batch, heads, q_len, value_dim), of :func:`dynattn.attention`.
        dense: same shape, of dense attention.
        kept_mass: (batch, heads, q_len), as ``Aux`` holds it.
        value: (batch, kv_heads, kv_len, value_dim).

    Returns:
        The certificate; the bound can be had without ``dense``, as ``(1 - kept_mass) * diameter(value)`` per head.

    Raises:
        ValueError: the shapes do not fit.
    """
    _check_outputs("certify", out, dense)
    if kept_mass.shape != out.shape[:-1] or value.dim() != 4 or out.shape[1] % value.shape[1]:
        raise ValueError(
            "certify: kept_mass must be (batch, heads, q_len) of out and heads a multiple of value's kv_heads: got "
            f"out {tuple(out.shape)}, kept_mass {tuple(kept_mass.shape)}, value {tuple(value.shape)}"
        )
    error = torch.linalg.vector_norm(out.double() - dense.double(), dim=-1)
    widest = diameter(value).double().repeat_interleave(out.shape[1] // value.shape[1], dim=1)
    bound = (1 - kept_mass.double()).clamp(min=0) * widest.unsqueeze(-1)
    largest = value.abs().amax((1, 2, 3)).double() if value.numel() else value.new_zeros(1).double()
    # Each output entry is an average of values, rounded to its dtype; accumulation adds a few units.
    rounding = 16 * torch.finfo(out.dtype).eps * out.shape[-1] ** 0.5 * largest.view(-1, 1, 1)
    return Certificate(error, bound, bool((error <= bound + rounding).all()))


def _check_choice(function: str, scores: Tensor, kept: Tensor) -> None:
    if kept.dtype != torch.bool:
        raise TypeError(f"{function}: kept must be bool: got {kept.dtype}; compare or convert with .bool()")
    if kept.shape != scores.shape:
        raise ValueError(
            f"{function}: kept must have the shape of scores: got {tuple(kept.shape)}, {tuple(scores.shape)}"
        )


def _check_outputs(function: str, out: Tensor, dense: Tensor) -> None:
    if out.shape != dense.shape or out.dim() < 2:
        raise ValueError(
            f"{function}: out and dense must have one shape (..., q_len, value_dim): got {tuple(out.shape)}, "
            f"{tuple(dense.shape)}"
        )
