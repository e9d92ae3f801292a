"""Arguments that do not fit get an error that names the rule and the remedy; what fits is taken whatever it is."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn.attention.bias import causal_lower_right, causal_upper_left

import dynattn
from dynattn.methods import parse
from tests.methods.every import NAMES, PLAIN

FUNCTIONS = (dynattn.attention, dynattn.explain)
HALVES = (torch.bfloat16, torch.float16)


def inputs(*shape: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator).to(dtype) for _ in range(3)]


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("scale", [1e-60, 1e39, -1e39, 5e-324, 1e-40, -(2.0**-127), 2.5e38, 1.7e308])
@pytest.mark.parametrize("method", NAMES)
def test_scales_that_float32_does_not_hold(method: str, scale: float, function: Callable) -> None:
    for dtype in (torch.float32, *HALVES):
        with pytest.raises(
            ValueError, match=r"attention: scale must be between 2\*\*-126 and 2\*\*127 in size.*float64"
        ):
            function(*inputs(1, 4, 9, 8, dtype=dtype), parse(method), scale=scale)


@pytest.mark.parametrize("scale", [2.0**-126, -(2.0**-126), 2.0**127, -(2.0**127), 1e-30, 3e37])
@pytest.mark.parametrize("method", [name for name in NAMES if name not in PLAIN])
def test_the_last_scales_that_it_holds(method: str, scale: float) -> None:
    query, key, value = (x.sign() for x in inputs(1, 4, 9, 8))
    query[..., 1:] = 0  # scores are the scale, or its negative
    if abs(scale) > 1:
        query = query * 2.0**-7
    got = dynattn.attention(query, key, value, parse(method), scale=scale)
    want = dynattn.attention(query.double(), key.double(), value.double(), parse(method), scale=scale)
    torch.testing.assert_close(got, want.float())


@pytest.mark.parametrize("scale", [1e-60, 1e39, -1e39, 5e-324, 1e-300])
def test_float64_takes_any_finite_scale(scale: float) -> None:
    query, key, value = (x.sign() for x in inputs(1, 2, 9, 8, dtype=torch.float64))
    out = dynattn.attention(query, key, value, dynattn.NM(2, 4), scale=scale)
    best = dynattn.attention(query, key, value, dynattn.NM(2, 4), scale=1e6 if scale > 0 else -1e6)
    assert out.isfinite().all()
    if abs(scale) > 1:
        torch.testing.assert_close(out, best)
    else:
        kept = dynattn.attention(query, key, torch.ones_like(value), dynattn.NM(2, 4), scale=scale)
        torch.testing.assert_close(kept, torch.ones_like(kept))


@pytest.mark.parametrize("scale", [10**400, float("nan"), float("inf"), 0, -0.0])
def test_scales_that_are_none(scale: float) -> None:
    for dtype in (torch.float32, torch.float64):
        query, key, value = inputs(1, 1, 2, 8, dtype=dtype)
        with pytest.raises(ValueError, match="attention: scale must be finite and not 0"):
            dynattn.attention(query, key, value, scale=scale)


@pytest.mark.parametrize("size", [(257, 257), (512, 512), (512, 64), (64, 512), (1024, 3), (1, 1)])
@pytest.mark.parametrize("method", NAMES)
def test_any_head_dim(method: str, size: tuple[int, int]) -> None:
    query, key = (x.clone().requires_grad_() for x in inputs(1, 4, 9, size[0])[:2])
    value = inputs(1, 4, 9, size[1])[0].requires_grad_()
    out = dynattn.attention(query, key, value, parse(method), causal=True)
    exact = dynattn.attention(query.double(), key.double(), value.double(), parse(method), causal=True)
    torch.testing.assert_close(out.double(), exact, rtol=1e-4, atol=1e-5)
    gradients = torch.autograd.grad(out.sum(), (query, key, value))
    torch.testing.assert_close(gradients, torch.autograd.grad(exact.sum(), (query, key, value)), rtol=1e-3, atol=1e-4)


def test_explain_says_which_size_is_too_much() -> None:
    from dynattn.kernels import cpu

    wide = cpu.MAX_HEAD_DIM + 1
    query, value = inputs(1, 1, 3, wide)[0], inputs(1, 1, 3, 8)[0]
    plan = dynattn.explain(query, query, value)
    assert plan.backend == "reference"
    assert plan.rejected["cpu"] == f"the kernels take a head_dim of at most {cpu.MAX_HEAD_DIM}, not {wide}"
    with pytest.raises(
        RuntimeError, match=f"'cpu' cannot run this: the kernels take a value_dim of at most .* not {wide}"
    ):
        dynattn.attention(value, value, query, backend="cpu")


@pytest.mark.parametrize("layout", [torch.jagged, torch.strided])
@pytest.mark.parametrize("where", ["query", "key", "value", "attn_mask"])
@pytest.mark.parametrize("function", FUNCTIONS)
def test_nested_tensors(function: Callable, where: str, layout: torch.layout) -> None:
    nested = torch.nested.nested_tensor([torch.randn(5, 4, 8), torch.randn(7, 4, 8)], layout=layout).transpose(1, 2)
    plain = torch.randn(2, 4, 7, 8)
    for name in NAMES:
        arguments = {x: nested if x == where else plain for x in ("query", "key", "value")}
        mask = nested if where == "attn_mask" else None
        with pytest.raises(TypeError, match=f"attention: {where} must be a tensor of one shape.*to_padded_tensor"):
            function(**arguments, method=parse(name), attn_mask=mask)


@pytest.mark.parametrize("make", [causal_lower_right, causal_upper_left])
@pytest.mark.parametrize("function", FUNCTIONS)
def test_pytorchs_causal_biases(function: Callable, make: Callable) -> None:
    """Tensors that broadcast to the scores, and hold what nobody has written."""
    for method in NAMES:
        with pytest.raises(TypeError, match=r"attention: attn_mask must hold a mask: got a CausalBias.*causal=True"):
            function(*inputs(1, 4, 9, 8), parse(method), attn_mask=make(9, 9))


@pytest.mark.parametrize("where", ["query", "key", "value", "attn_mask"])
@pytest.mark.parametrize("function", FUNCTIONS)
def test_sparse_tensors(function: Callable, where: str) -> None:
    arguments = {name: torch.zeros(1, 1, 8, 8) for name in ("query", "key", "value", "attn_mask")}
    arguments[where] = arguments[where].to_sparse()
    with pytest.raises(TypeError, match=f"attention: {where} must be a dense tensor: got layout torch.sparse_coo"):
        function(**arguments, method=dynattn.NM(1, 2))


@pytest.mark.parametrize("computed", HALVES)
@pytest.mark.parametrize("mask", [torch.bool, torch.float32, *HALVES])
@pytest.mark.parametrize("method", NAMES)
def test_autocast_with_masks_of_any_dtype(method: str, mask: torch.dtype, computed: torch.dtype) -> None:
    bias = torch.zeros(1, 1, 1, 40)
    bias[..., 30:] = -torch.inf
    attn_mask = bias == 0 if mask == torch.bool else bias.to(mask)
    for dtype in (torch.float32, *HALVES):
        query, key, value = (x.to(dtype).requires_grad_() for x in inputs(1, 4, 40, 16))
        with torch.autocast("cpu", dtype=computed):
            out = dynattn.attention(query, key, value, parse(method), attn_mask=attn_mask, causal=True)
        assert out.dtype == computed
        want = dynattn.attention(
            query.to(computed), key.to(computed), value.to(computed), parse(method), attn_mask=bias == 0, causal=True
        )
        torch.testing.assert_close(out, want, rtol=2e-2, atol=2e-2)
        out.sum().backward()
        assert query.grad is not None
        assert query.grad.isfinite().all()


@pytest.mark.parametrize("mask", [torch.bool, torch.float32, *HALVES])
@pytest.mark.parametrize("method", [name for name in NAMES if name not in PLAIN])
def test_autocast_with_masks_for_every_query(method: str, mask: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(1)
    bias = torch.randint(-2, 3, (1, 4, 40, 40), generator=generator).to(mask if mask != torch.bool else torch.float32)
    attn_mask = bias > 0 if mask == torch.bool else bias
    query, key, value = inputs(1, 4, 40, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = dynattn.attention(query, key, value, parse(method), attn_mask=attn_mask)
    half = query.bfloat16(), key.bfloat16(), value.bfloat16()
    want = dynattn.attention(*half, parse(method), attn_mask=attn_mask)
    torch.testing.assert_close(out, want, rtol=0, atol=0)
