import dataclasses
import math

import pytest
import torch
from torch import Tensor

import dynattn
from dynattn.methods import EfficientAttention, parse
from tests import gradients
from tests.methods.mixing import looped

EFFICIENT = EfficientAttention()


def definition(query: Tensor, key: Tensor, bias: Tensor, seen: list[int]) -> Tensor:
    """Σ_f p_f exp(k_jf + bias_j) / Σ_l exp(k_lf + bias_l), with Python's own exp."""
    p = [math.exp(x) for x in query.tolist()]
    p = [x / sum(p) for x in p]
    found = [0.0] * len(seen)
    for f, share in enumerate(p):
        w = [math.exp(key[j, f] + bias[j]) for j in seen]
        found = [old + share * x / sum(w) for old, x in zip(found, w, strict=True)]
    return torch.tensor(found, dtype=torch.float64)


def inputs(q_len: int, kv_len: int, heads: int = 4, kv_heads: int = 2, dtype: torch.dtype = torch.float64):
    generator = torch.Generator().manual_seed(q_len * 1000 + kv_len)
    shapes = (2, heads, q_len, 5), (2, kv_heads, kv_len, 5), (2, kv_heads, kv_len, 3)
    return [2 * torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes]


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("q_len", "kv_len"), [(1, 1), (7, 7), (35, 35), (3, 20), (1, 18), (9, 4)])
def test_is_the_definition(q_len: int, kv_len: int, causal: bool) -> None:
    q, k, v = inputs(q_len, kv_len)
    out = dynattn.attention(q, k, v, EFFICIENT, causal=causal)
    torch.testing.assert_close(out, looped(q, k, v, None, causal, definition), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("causal", [False, True])
def test_masks_of_keys(causal: bool) -> None:
    q, k, v = inputs(20, 20)
    mask = torch.rand(2, 1, 1, 20, generator=torch.Generator().manual_seed(1)) < 0.6
    mask[1] = False  # nothing allowed
    k[0, :, ~mask[0, 0, 0]] = math.inf  # what a forbidden key holds must not matter
    v[0, :, ~mask[0, 0, 0]] = math.nan
    bias = torch.zeros(2, 4, 20).masked_fill(~mask[:, :, 0], -math.inf)
    out = dynattn.attention(q, k, v, EFFICIENT, attn_mask=mask, causal=causal)
    torch.testing.assert_close(out, looped(q, k, v, bias, causal, definition), rtol=1e-10, atol=1e-12)
    assert (out[1] == 0).all()


@pytest.mark.parametrize("causal", [False, True])
def test_bias_of_keys_by_head(causal: bool) -> None:
    q, k, v = inputs(18, 18)
    bias = torch.randn(2, 4, 18, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    bias[:, :, 3] = -math.inf
    out = dynattn.attention(q, k, v, EFFICIENT, attn_mask=bias.unsqueeze(2), causal=causal)
    torch.testing.assert_close(out, looped(q, k, v, bias, causal, definition), rtol=1e-10, atol=1e-12)


def test_scale_multiplies_the_queries() -> None:
    q, k, v = inputs(6, 6)
    scaled = dynattn.attention(q, k, v, EFFICIENT, scale=3 * 5**-0.5)
    torch.testing.assert_close(scaled, dynattn.attention(3 * q, k, v, EFFICIENT))


def test_a_mask_by_query_is_refused() -> None:
    q, k, v = inputs(6, 6)
    with pytest.raises(ValueError, match="efficient: attn_mask must be the same for every query"):
        dynattn.attention(q, k, v, EFFICIENT, attn_mask=torch.ones(6, 6, dtype=torch.bool))


@pytest.mark.parametrize("causal", [False, True])
def test_large_numbers_neither_overflow_nor_vanish(causal: bool) -> None:
    q, k, v = inputs(40, 40, dtype=torch.float32)
    q, k = 200 * q, 200 * k  # differences far beyond what float32's exponent spans
    out = dynattn.attention(q, k, v, EFFICIENT, causal=causal)
    exact = dynattn.attention(q.double(), k.double(), v.double(), EFFICIENT, causal=causal)
    torch.testing.assert_close(out.double(), exact, rtol=1e-3, atol=1e-3)
    assert out.isfinite().all()


def test_what_follows_does_not_change_a_causal_row() -> None:
    q, k, v = inputs(30, 30)
    before = dynattn.attention(q, k, v, EFFICIENT, causal=True)
    k[:, :, 20:], v[:, :, 20:] = 1e3, -7.0
    after = dynattn.attention(q, k, v, EFFICIENT, causal=True)
    assert torch.equal(before[:, :, :20], after[:, :, :20])
    assert not torch.allclose(before[:, :, 20:], after[:, :, 20:])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    q, k, v = inputs(20, 20, dtype=dtype)
    out = dynattn.attention(q, k, v, EFFICIENT)
    assert out.dtype == dtype
    exact = dynattn.attention(q.float(), k.float(), v.float(), EFFICIENT)
    assert torch.equal(out, exact.to(dtype))


@pytest.mark.parametrize("causal", [False, True])
def test_gradients(causal: bool) -> None:
    q, k, v = (x[:1].requires_grad_() for x in inputs(18, 18, 2, 1))
    mask = torch.ones(1, 1, 1, 18, dtype=torch.bool)
    mask[..., :2] = False  # with causal, two queries see nothing

    def call(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return dynattn.attention(query, key, value, EFFICIENT, attn_mask=mask, causal=causal)

    gradients.check(call, (q, k, v))


def test_name_and_nature() -> None:
    assert parse("efficient") == EFFICIENT
    assert EFFICIENT.name == "efficient"
    assert not EFFICIENT.keeps_everything
    with pytest.raises(dataclasses.FrozenInstanceError):
        EFFICIENT.x = 1  # type: ignore[attr-defined]


@pytest.mark.parametrize("causal", [False, True])
def test_compiles_without_a_break(causal: bool) -> None:
    q, k, v = inputs(20, 20)
    compiled = torch.compile(dynattn.attention, fullgraph=True, backend="aot_eager")
    found = compiled(q, k, v, EFFICIENT, causal=causal)
    torch.testing.assert_close(found, dynattn.attention(q, k, v, EFFICIENT, causal=causal))
