"""``dynattn.nn``: against ``torch.nn.MultiheadAttention`` and against the parts it is made of."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from dynattn import NM, attention
from dynattn.methods import parse
from dynattn.nn import Attention
from tests.methods.every import NAMES

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
    module = Attention(16, 2, causal=True, gate="headwise")
    x = torch.randn(2, 6, 16)
    module(x).square().sum().backward()
    gradients = [p.grad for p in module.parameters() if p.grad is not None]
    assert len(gradients) == 10
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


@pytest.mark.parametrize("method", NAMES)
@pytest.mark.parametrize("form", ["headwise", "elementwise"])
def test_a_gate_stands_behind_any_method(form, method):
    """Against its parts; the gate reads what the queries read, not the context."""
    torch.manual_seed(0)
    module = Attention(12, 4, kv_heads=2, method=parse(method), gate=form, bias=False, dtype=torch.float64)
    x = torch.randn(2, 9, 12).double()
    heads = attention(
        heads_of(x @ module.q_proj.weight.T, 4), heads_of(x @ module.k_proj.weight.T, 2),
        heads_of(x @ module.v_proj.weight.T, 2), module.method,
    )  # fmt: skip
    assert module.gate is not None
    factor = torch.sigmoid(heads_of(x @ module.gate.projection.weight.T, 4))
    expected = (heads * factor).permute(0, 2, 1, 3).reshape(2, 9, 12) @ module.out_proj.weight.T
    torch.testing.assert_close(module(x), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("form", ["headwise", "elementwise"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_gate_that_is_added_leaves_a_trained_module_as_it_was(form, dtype):
    torch.manual_seed(0)
    module, x = Attention(16, 4, kv_heads=2, causal=True, dtype=dtype).eval(), torch.randn(2, 7, 16, dtype=dtype)
    expected = module(x)
    module.add_gate(form)
    assert module.gate is not None
    assert not module.gate.training
    assert torch.equal(module(x), expected)
    module(x).float().square().sum().backward()
    gradient = module.gate.projection.weight.grad
    assert gradient is not None
    assert float(gradient.abs().max()) > 0
    with pytest.raises(ValueError, match=f"must have no gate: it has one that is {form}; set gate to None"):
        module.add_gate("headwise")
    module.gate = None
    assert torch.equal(module(x), expected)


@pytest.mark.parametrize("form", ["headwise", "elementwise"])
def test_a_folded_gate_is_a_plain_sigmoid(form):
    torch.manual_seed(0)
    module, x = Attention(16, 4, dtype=torch.float64), torch.randn(2, 7, 16).double()
    with pytest.raises(ValueError, match="must have a gate: it has none"):
        module.fold_gate()
    module.add_gate(form)
    assert module.gate is not None
    nn.init.normal_(module.gate.projection.weight)
    expected = module(x)
    plain = Attention(16, 4, gate=form, dtype=torch.float64)
    module.fold_gate()
    torch.testing.assert_close(module(x), expected, rtol=1e-12, atol=1e-12)
    plain.load_state_dict(module.state_dict())
    assert plain.gate is not None
    assert float(plain.gate.ceiling) == 1
    assert torch.equal(plain(x), module(x))
    module.fold_gate()  # a second time there is nothing to move
    torch.testing.assert_close(module(x), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("heads", "kv_heads", "width"), [(4, 2, 1), (4, 2, 6), (4, 4, 6), (4, 1, 1)])
@pytest.mark.parametrize("groups", ["by key head", "by head"])
def test_published_projections(bias, heads, kv_heads, width, groups):
    """Rows of the query projection, group by group: its heads' queries, then its heads' gates."""
    torch.manual_seed(0)
    head_dim, runs = 6, kv_heads if groups == "by key head" else heads
    sizes = (heads * (head_dim + width), kv_heads * head_dim, kv_heads * head_dim)
    q, k, v = (nn.Linear(10, size, bias=bias).double() for size in sizes)
    o = nn.Linear(heads * head_dim, 10, bias=bias).double()
    module = Attention.from_gated(
        q, k, v, o, heads, kv_heads, groups=None if groups == "by key head" else heads, method=NM(1, 2)
    )
    x, each = torch.randn(2, 8, 10).double(), heads // runs
    query, gate = torch.empty(2, heads, 8, head_dim).double(), torch.empty(2, heads, 8, width).double()
    rows = q(x).unflatten(-1, (runs, each * (head_dim + width)))
    for head in range(heads):
        run, place = divmod(head, each)
        query[:, head] = rows[:, :, run, place * head_dim : (place + 1) * head_dim]
        begin = each * head_dim + place * width
        gate[:, head] = rows[:, :, run, begin : begin + width]
    out = attention(query, heads_of(k(x), kv_heads), heads_of(v(x), kv_heads), NM(1, 2), causal=True)
    expected = o((out * gate.sigmoid()).transpose(1, 2).flatten(2))
    torch.testing.assert_close(module(x), expected, rtol=1e-10, atol=1e-12)
    assert module.gate is not None
    assert module.gate.form == ("headwise" if width == 1 else "elementwise")


def test_projections_without_gates_and_with_a_few_biases_are_refused():
    q, k, v, o = (nn.Linear(8, 8, bias=name == "k") for name in "qkvo")
    with pytest.raises(ValueError, match="all projections must have biases, or none"):
        Attention.from_gated(q, k, v, o, 2, 2)
    with pytest.raises(ValueError, match="rows must be 8 of queries and 2 or 8 of gates: got 8"):
        Attention.from_gated(q, v, v, o, 2, 2)


def test_a_gated_module_computes_under_autocast():
    module, x = Attention(16, 2, gate="elementwise"), torch.randn(2, 6, 16)
    with torch.autocast("cpu", torch.bfloat16):
        assert module(x).dtype == torch.bfloat16
