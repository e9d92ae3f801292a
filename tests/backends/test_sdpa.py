"""PyTorch's own attention as a backend: what it refuses and why, and that it gives the reference's answer."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import dynattn
from dynattn import NM, TopK

DENSE = NM(1, 1)


def inputs(kv_heads: int = 2, kv_len: int = 9) -> list[torch.Tensor]:
    torch.manual_seed(0)
    return [torch.randn(2, n, length, 8) for n, length in ((4, 9), (kv_heads, kv_len), (kv_heads, kv_len))]


@pytest.mark.parametrize(
    ("method", "kv_len", "options", "reason"),
    [
        (NM(1, 2), 9, {}, "it is dense, and nm-1-2 is not"),
        (TopK(k=3), 9, {}, "it is dense, and topk-3 is not"),
        (DENSE, 9, {"return_aux": True}, "it returns no logsumexp"),
        (DENSE, 9, {"dropout_p": 0.5}, "it draws other pairs for dropout"),
        (DENSE, 9, {"attn_mask": torch.ones(9, 9, dtype=torch.bool)}, "it gives NaN for rows that a mask empties"),
        (DENSE, 12, {"causal": True}, "it aligns causal masks top-left where q_len != kv_len"),
    ],
)
def test_what_it_refuses(method: Any, kv_len: int, options: dict[str, Any], reason: str) -> None:
    query, key, value = inputs(kv_len=kv_len)
    with pytest.raises(RuntimeError, match=f"backend 'sdpa' cannot run this: {reason}"):
        dynattn.attention(query, key, value, method, backend="sdpa", **options)


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize("causal", [False, True])
def test_it_gives_the_references_answer_and_gradients(kv_heads: int, causal: bool) -> None:
    query, key, value = (x.requires_grad_() for x in inputs(kv_heads))
    found = []
    for backend in ("sdpa", "reference"):
        out = dynattn.attention(query, key, value, DENSE, backend=backend, causal=causal, scale=0.3)
        found.append((out, *torch.autograd.grad(out.square().sum(), [query, key, value])))
    torch.testing.assert_close(*found)
