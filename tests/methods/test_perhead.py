"""A method for each head: what is refused."""

import pytest
import torch
from torch import Tensor

import dynattn
from dynattn import NM, PerHead, TopK, Window

DENSE, HALF, BEST, NEAR = NM(1, 1), NM(1, 2), TopK(k=3), Window(4, 1)


def tensors(kv_heads: int = 3) -> list[Tensor]:
    torch.manual_seed(0)
    return [torch.randn(2, n, 13, 8, requires_grad=True) for n in (6, kv_heads, kv_heads)]


def test_refusals() -> None:
    query, key, value = tensors()
    with pytest.raises(ValueError, match="one method for each head of query: got 2 for 6 heads"):
        dynattn.attention(query, key, value, PerHead((HALF, BEST)))
    with pytest.raises(ValueError, match="PerHead: parts must be one method for each head"):
        PerHead(())
    with pytest.raises(ValueError, match="none of them PerHead or PerLayer"):
        PerHead((PerHead((HALF,)),))
    with pytest.raises(TypeError, match="PerHead: parts must be a tuple of methods"):
        PerHead([HALF])  # pyright: ignore[reportArgumentType]
