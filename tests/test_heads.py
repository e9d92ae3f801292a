"""Heads of their own methods, run together: against each head in a call of its own."""

import pytest
import torch
from torch import Tensor

import dynattn
from dynattn import NM, PerHead, TopK, Window, heads
from dynattn.methods import Method

DENSE, HALF, BEST, NEAR = NM(1, 1), NM(1, 2), TopK(k=3), Window(4, 1)
MIXED = (HALF, DENSE, BEST, HALF, NEAR, HALF)


def tensors(kv_heads: int = 3) -> list[Tensor]:
    torch.manual_seed(0)
    return [torch.randn(2, n, 13, 8, requires_grad=True) for n in (6, kv_heads, kv_heads)]


def one_by_one(query: Tensor, key: Tensor, value: Tensor, parts: tuple[Method, ...], **options) -> list:
    """Each head in a call of its own."""
    group = query.shape[1] // key.shape[1]
    mask = options.pop("attn_mask", None)
    results = []
    for h, part in enumerate(parts):
        shared = slice(h // group, h // group + 1)
        its = mask[:, h : h + 1] if mask is not None and mask.shape[1] > 1 else mask
        results.append(
            dynattn.attention(query[:, h : h + 1], key[:, shared], value[:, shared], part, attn_mask=its, **options)
        )
    return results


@pytest.mark.parametrize("kv_heads", [1, 2, 3, 6])
@pytest.mark.parametrize(
    "parts", [MIXED, (HALF,) * 6, (HALF, HALF, BEST, BEST, NEAR, NEAR), (BEST, HALF, BEST, HALF, BEST, HALF)]
)
@pytest.mark.parametrize("mask", [None, "per head", "shared"])
def test_every_head_by_its_own_method(kv_heads: int, parts: tuple[Method, ...], mask: str | None) -> None:
    query, key, value = (x.detach() for x in tensors(kv_heads))
    attn_mask = None
    if mask:
        shape = (2, 6, 13, 13) if mask == "per head" else (2, 1, 1, 13)
        attn_mask = torch.rand(shape, generator=torch.Generator().manual_seed(1)) < 0.7
    out, aux = dynattn.attention(
        query, key, value, PerHead(parts), attn_mask=attn_mask, causal=True, scale=0.3, return_aux=True
    )
    options = {"causal": True, "scale": 0.3, "attn_mask": attn_mask}
    want = one_by_one(query, key, value, parts, return_aux=True, **options)
    torch.testing.assert_close(out, torch.cat([result for result, _ in want], 1))
    for field, found in enumerate(aux):
        torch.testing.assert_close(found, torch.cat([its[field] for _, its in want], 1))
    alone = dynattn.attention(query, key, value, PerHead(parts), **options)
    torch.testing.assert_close(alone, out)


def test_heads_of_one_method_run_together_and_share_key_heads_where_they_can() -> None:
    query, key, value = tensors(kv_heads=2)
    parts = list(heads.parts(query, key, value, PerHead((HALF, HALF, BEST, NEAR, NEAR, NEAR)), None, None))
    shapes = [(part.method, part.heads, part.query.shape[1], part.key.shape[1]) for part in parts]
    assert shapes == [(HALF, [0, 1], 2, 1), (BEST, [2], 1, 1), (NEAR, [3, 4, 5], 3, 1)]
    assert parts[2].query.untyped_storage().data_ptr() == query.untyped_storage().data_ptr()
    uneven = list(heads.parts(query, key, value, PerHead((HALF, HALF, BEST, HALF, BEST, BEST)), None, None))
    assert [part.key.shape[1] for part in uneven] == [3, 3]


def test_gradient_and_compile() -> None:
    query, key, value = tensors()
    method = PerHead(MIXED)

    def step(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return dynattn.attention(query, key, value, method, causal=True).square().sum()

    want = torch.autograd.grad(
        torch.cat(one_by_one(query, key, value, MIXED, causal=True), 1).square().sum(), (query, key, value)
    )
    got = torch.autograd.grad(step(query, key, value), (query, key, value))
    torch.testing.assert_close(got, want)
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(torch.autograd.grad(compiled(query, key, value), (query, key, value)), want)


def test_dropout_draws_anew_for_each_method() -> None:
    query, key, value = tensors()
    query = query[:, :1].expand(-1, 6, -1, -1)
    key, value = (x[:, :1].expand(-1, 6, -1, -1) for x in (key, value))
    two = PerHead((NM(1, 1),) * 3 + (TopK(ratio=1.0),) * 3)  # dense both: heads differ in what is dropped alone
    out = dynattn.attention(query, key, value, two, dropout_p=0.5, seed=5)
    torch.testing.assert_close(dynattn.attention(query, key, value, two, dropout_p=0.5, seed=torch.tensor(5)), out)
    for h in range(1, 6):
        assert (out[:, h] - out[:, 0]).abs().max() > 1e-2  # more than two ways to compute the same


def test_explain() -> None:
    query, key, value = tensors()
    text = str(dynattn.explain(query, key, value, PerHead(MIXED)))
    assert "nm-1-2, 3 of 6 heads: cpu: fused C++ kernel" in text
    assert "topk-3, 1 of 6 heads: cpu: fused C++ kernel" in text
    with pytest.raises(RuntimeError, match="window-4-s1 is another method"):
        dynattn.attention(query, key, value, PerHead(MIXED), backend="cpu")
