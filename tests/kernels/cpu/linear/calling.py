"""Calls the kernels of linear layers into poisoned outputs, and computes what they must give by loops in float64."""

from __future__ import annotations

import math
from typing import NamedTuple

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


def rows(
    x: Tensor, weight_t: Tensor, bias: Tensor | None, keep: Tensor, isa: str, scale: Tensor | None = None
) -> Tensor:
    """The kernel's answer."""
    out = poisoned(x, weight_t.shape[1])
    linear_calls.linear_rows(x, weight_t, bias, keep, out, isa, scale)
    return out


def outputs(
    x: Tensor, weight: Tensor, bias: Tensor | None, keep: Tensor, isa: str, scale: Tensor | None = None
) -> Tensor:
    """The kernel's answer."""
    out = poisoned(x, weight.shape[0])
    linear_calls.linear_outputs(x, weight, bias, keep, out, isa, scale)
    return out


def error(got: Tensor, want: Tensor) -> float:
    """Largest difference."""
    return (got.double() - want).abs().max().item()
