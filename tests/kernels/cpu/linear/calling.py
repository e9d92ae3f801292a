"""Calls the kernels of linear layers into poisoned outputs, and computes what they must give by loops in float64."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dynattn.kernels.cpu import linear_calls

SIZES = [(1, 1), (3, 17), (17, 3), (63, 65), (257, 31), (300, 520)]
"""Inputs and outputs."""

DTYPES = [torch.float32, torch.bfloat16]


class Layer(NamedTuple):
    """A linear layer, and its tokens."""

    x: Tensor
    weight: Tensor
    bias: Tensor
    keep_inputs: Tensor
    keep_outputs: Tensor


def layer(tokens: int, inputs: int, outputs: int, dtype: torch.dtype, share: float = 0.5, whole: bool = True) -> Layer:
    """A layer of small integers, whose sums are exact in float32, or of normal numbers."""
    draw = torch.Generator().manual_seed(tokens * inputs + outputs)

    def numbers(*shape: int) -> Tensor:
        if whole:
            return torch.randint(-3, 4, shape, generator=draw).to(dtype)
        return torch.randn(shape, generator=draw).to(dtype)

    def mask(*shape: int) -> Tensor:
        return torch.rand(shape, generator=draw) < share

    return Layer(
        numbers(tokens, inputs), numbers(outputs, inputs), numbers(outputs), mask(tokens, inputs), mask(tokens, outputs)
    )


def rows_by_loops(x: Tensor, weight: Tensor, bias: Tensor | None, keep: Tensor) -> Tensor:
    """float64: of each token the kept inputs alone, one after the other."""
    y = torch.zeros(x.shape[0], weight.shape[0], dtype=torch.float64)
    x, weight = x.double(), weight.double()
    for i in range(x.shape[1]):
        y += torch.where(keep[:, i, None], x[:, i, None] * weight[:, i], 0)
    return y if bias is None else y + bias.double()


def outputs_by_loops(x: Tensor, weight: Tensor, bias: Tensor | None, keep: Tensor) -> Tensor:
    """float64: one input after the other, of each token the wanted outputs alone."""
    return rows_by_loops(x, weight, bias, torch.ones_like(x, dtype=torch.bool)).masked_fill(~keep, 0)


def poisoned(x: Tensor, outputs: int) -> Tensor:
    """An output to fill."""
    return torch.full((x.shape[0], outputs), math.nan, dtype=x.dtype)


def largest_by_loops(x: Tensor, n: int, m: int, factors: Tensor | None) -> Tensor:
    """Of every M inputs the N with the largest ``|x| · factor``, the first of equal ones; NaN always."""
    scores = (x.float().abs() * (1 if factors is None else factors)).tolist()
    keep = torch.zeros(x.shape, dtype=torch.bool)
    for token, row in enumerate(scores):
        sizes = [math.inf if math.isnan(score) else score for score in row]
        for first in range(0, len(row), m):
            group = range(first, min(first + m, len(row)))
            for i in (*sorted(group, key=lambda i: -sizes[i])[:n], *(i for i in group if math.isnan(row[i]))):
                keep[token, i] = True
    return keep


def above_by_loops(x: Tensor, thresholds: Tensor) -> Tensor:
    """What is larger than its threshold, and NaN."""
    least = thresholds.expand(x.shape[1]).tolist()
    kept = [[not abs(a) <= t for a, t in zip(row, least, strict=True)] for row in x.tolist()]
    return torch.tensor(kept, dtype=torch.bool).view(x.shape)


def choice(x: Tensor, isa: str, **by: Any) -> Tensor:
    """The kernel's choice, into a mask whose bytes are none of truth values."""
    keep = torch.full(x.shape, 7, dtype=torch.uint8)
    linear_calls.linear_choice(x, keep, isa, **by)
    assert keep.max() <= 1
    return keep.bool()


def rows(
    x: Tensor, weight_t: Tensor, bias: Tensor | None, keep: Tensor | None, isa: str, scale: Tensor | None = None,
    out: Tensor | None = None, **by: Any,
) -> Tensor:  # fmt: skip
    """The kernel's answer."""
    out = poisoned(x, weight_t.shape[1]) if out is None else out
    linear_calls.linear_rows(x, weight_t, bias, out, isa, keep=keep, scale=scale, **by)
    return out


def outputs(
    x: Tensor, weight: Tensor, bias: Tensor | None, keep: Tensor, isa: str, scale: Tensor | None = None
) -> Tensor:
    """The kernel's answer."""
    out = poisoned(x, weight.shape[0])
    linear_calls.linear_outputs(x, weight, bias, out, isa, keep=keep, scale=scale)
    return out


def error(got: Tensor, want: Tensor) -> float:
    """Largest difference."""
    return (got.double() - want).abs().max().item()
