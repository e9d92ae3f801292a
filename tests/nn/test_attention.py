"""``dynattn.nn``: against ``torch.nn.MultiheadAttention`` and against the parts it is made of."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from dynattn import NM, attention
from dynattn.nn import Attention

DENSE = NM(1, 1)


def heads_of(x: torch.Tensor, heads: int) -> torch.Tensor:
    return x.reshape(*x.shape[:2], heads, -1).permute(0, 2, 1, 3)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kdim", [None, 12])
def test_from_torch_computes_the_same(bias, kdim):
    torch.manual_seed(0)
    theirs = nn.MultiheadAttention(24, 3, bias=bias, kdim=kdim, vdim=kdim, batch_first=True, dtype=torch.float64)
    if bias:
        nn.init.normal_(theirs.in_proj_bias)
        nn.init.normal_(theirs.out_proj.bias)
    ours = Attention.from_torch(theirs, DENSE)
    x, context = torch.randn(2, 5, 24).double(), torch.randn(2, 7, kdim or 24).double()
    padding = torch.tensor([[1, 1, 1, 1, 1, 0, 0], [1] * 7]).bool()
    expected, _ = theirs(x, context, context, key_padding_mask=~padding)
    torch.testing.assert_close(ours(x, context, attn_mask=padding[:, None, None]), expected, rtol=1e-10, atol=1e-12)


def test_from_torch_causal_self_attention():
    torch.manual_seed(0)
    theirs = nn.MultiheadAttention(24, 3, batch_first=True, dtype=torch.float64)
    x = torch.randn(2, 9, 24, dtype=torch.float64)
    expected, _ = theirs(x, x, x, attn_mask=nn.Transformer.generate_square_subsequent_mask(9, dtype=x.dtype))
    ours = Attention.from_torch(theirs, DENSE, causal=True)
    torch.testing.assert_close(ours(x), expected, rtol=1e-10, atol=1e-12)


def test_from_torch_refuses_what_it_would_drop():
    for module, found in (
        (nn.MultiheadAttention(8, 2, add_bias_kv=True), "add_bias_kv"),
        (nn.MultiheadAttention(8, 2, add_zero_attn=True), "add_zero_attn"),
        (nn.MultiheadAttention(8, 2, kdim=4, vdim=6), "kdim != vdim"),
    ):
        with pytest.raises(ValueError, match=f"got {found}"):
            Attention.from_torch(module)


def test_grouped_queries_and_methods():
    torch.manual_seed(0)
    module = Attention(24, 6, kv_heads=2, head_dim=5, kv_dim=10, method=NM(1, 2), bias=False, dtype=torch.float64)
    x, context = torch.randn(2, 4, 24).double(), torch.randn(2, 11, 10).double()
    for method in (NM(1, 2), NM(2, 4, sinks=1), DENSE):
        module.method = method
        out = attention(
            heads_of(x @ module.q_proj.weight.T, 6), heads_of(context @ module.k_proj.weight.T, 2),
            heads_of(context @ module.v_proj.weight.T, 2), method,
        )  # fmt: skip
        expected = out.permute(0, 2, 1, 3).reshape(2, 4, 30) @ module.out_proj.weight.T
        torch.testing.assert_close(module(x, context), expected, rtol=1e-10, atol=1e-12)


def test_trains_and_compiles():
    torch.manual_seed(0)
    module = Attention(16, 2, causal=True)
    x = torch.randn(2, 6, 16)
    module(x).square().sum().backward()
    gradients = [p.grad for p in module.parameters() if p.grad is not None]
    assert len(gradients) == 8
    assert all(g.abs().max() > 0 for g in gradients)
    module.zero_grad()
    torch.compile(module, backend="aot_eager", fullgraph=True)(x).square().sum().backward()
    for gradient, parameter in zip(gradients, module.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-4, atol=1e-5)


def test_sizes_must_divide():
    with pytest.raises(ValueError, match="multiple of heads: got 10, 3"):
        Attention(10, 3)
    with pytest.raises(ValueError, match="multiple of kv_heads: got 6, 4"):
        Attention(24, 6, kv_heads=4)


def test_prints_what_it_does():
    assert "heads=4, kv_heads=2, head_dim=8, method=nm-2-4, causal=True" in repr(
        Attention(32, 4, kv_heads=2, causal=True)
    )


def test_drops_weights_in_training_alone():
    ours = Attention.from_torch(nn.MultiheadAttention(16, 2, dropout=0.5))
    x = torch.randn(2, 9, 16)
    torch.manual_seed(0)
    first, second = ours(x), ours(x)
    torch.manual_seed(0)
    assert torch.equal(first, ours(x))
    assert not torch.equal(first, second)
    same = Attention(16, 2)
    same.load_state_dict(ours.state_dict())
    assert torch.equal(ours.eval()(x), same(x))
    assert "dropout=0.5" in repr(ours)
    with pytest.raises(ValueError, match="dropout must be at least 0 and below 1"):
        Attention(16, 2, dropout=1.0)
