"""The operator that serves methods that mix values without keeping pairs."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

import dynattn
from dynattn.methods import MixingMethod, register


@register
@dataclass(frozen=True)
class Mean(MixingMethod):
    """The mean of the values, for every query."""

    @property
    def name(self) -> str:
        return "mean"

    @classmethod
    def from_name(cls, name: str) -> Mean | None:
        return cls() if name == "mean" else None

    def attend(self, query: Tensor, key: Tensor, value: Tensor, **_: object) -> Tensor:
        mean = value.mean(2, keepdim=True).repeat_interleave(query.shape[1] // value.shape[1], 1)
        return mean.expand(*query.shape[:3], -1).to(query.dtype)


def inputs(q_len: int = 37, kv_len: int = 37, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    torch.manual_seed(0)
    shapes = ((2, 4, q_len, 8), (2, 2, kv_len, 8), (2, 2, kv_len, 6))
    return [torch.randn(shape, dtype=dtype, requires_grad=True) for shape in shapes]


def test_mixing_method_and_what_it_has_not() -> None:
    query, key, value = inputs(dtype=torch.float32)
    out = dynattn.attention(query, key, value, Mean())
    torch.testing.assert_close(out[:, 3, 5], value[:, 1].mean(1))
    with pytest.raises(ValueError, match="return_aux=True needs a method that keeps pairs: mean keeps none"):
        dynattn.attention(query, key, value, Mean(), return_aux=True)
    with pytest.raises(ValueError, match=r"dropout_p=0.5 needs a method that keeps pairs"):
        dynattn.attention(query, key, value, Mean(), dropout_p=0.5)
