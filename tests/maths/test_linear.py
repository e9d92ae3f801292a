"""Sums in the log domain, against the sum written out in float64."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from dynattn.maths.linear import forbid, key_bias, mix


def sums(log_query: Tensor, log_key: Tensor, value: Tensor, causal: bool) -> Tensor:
    """The equation of the module's head, term by term."""
    weights = (log_query.unsqueeze(3) + log_key.unsqueeze(2)).exp().sum(-1)
    if causal:
        later = torch.ones_like(weights[0, 0]).triu(1 + log_key.shape[2] - log_query.shape[2]).bool()
        weights = weights.masked_fill(later, 0.0)
    return weights @ value


def parts(q_len: int, kv_len: int, spread: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(q_len + kv_len)
    return tuple(
        spread * torch.randn(2, 3, length, width, generator=generator, dtype=torch.float64)
        for length, width in ((q_len, 5), (kv_len, 5), (kv_len, 4))
    )  # pyright: ignore[reportReturnType]


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("q_len", "kv_len"), [(1, 1), (16, 16), (17, 40), (40, 17), (3, 50)])
def test_the_sums_are_those_of_the_equation(q_len: int, kv_len: int, causal: bool) -> None:
    log_query, log_key, value = parts(q_len, kv_len)
    found, scale = mix(log_query, log_key, value, causal)
    torch.testing.assert_close(scale.exp() * found, sums(log_query, log_key, value, causal))


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("q_len", "kv_len"), [(0, 4), (4, 0), (0, 0)])
def test_where_there_is_nothing_to_sum_gradients_are_zero(q_len: int, kv_len: int, causal: bool) -> None:
    log_query, log_key, value = (x.requires_grad_() for x in parts(q_len, kv_len))
    found, scale = mix(log_query, log_key, value, causal)
    assert found.shape == (2, 3, q_len, 4)
    assert not found.any()
    assert not scale.any()
    for gradient in torch.autograd.grad(found.sum(), [log_query, log_key, value]):
        assert not gradient.any()


@pytest.mark.parametrize("causal", [False, True])
def test_logarithms_far_from_zero_neither_overflow_nor_vanish(causal: bool) -> None:
    log_query, log_key, value = parts(20, 20)
    found, scale = mix(log_query, log_key, value, causal)
    far, far_scale = mix(log_query + 2000.0, log_key - 5000.0, value, causal)
    torch.testing.assert_close(far, found)
    torch.testing.assert_close(far_scale, scale - 3000.0)


def test_a_row_without_a_key_is_zero_with_scale_zero() -> None:
    log_query, log_key, value = parts(5, 3)
    found, scale = mix(log_query, log_key, value, causal=True)
    assert (found[:, :, :2] == 0).all()
    assert (scale[:, :, :2] == 0).all()
    found, scale = mix(log_query, torch.full_like(log_key, -math.inf), value, causal=False)
    assert (found == 0).all()
    assert scale.isfinite().all()


def test_what_a_forbidden_key_holds_reaches_nothing() -> None:
    _, log_key, value = parts(4, 6)
    allowed = torch.tensor([True, True, False, True, True, True])
    bias = key_bias("linear", allowed.view(1, 1, 1, 6), torch.float64)
    log_key[:, :, 2], value[:, :, 2] = torch.nan, torch.inf
    barred, cleared = forbid(log_key, value, bias)
    assert (barred[:, :, 2] == -math.inf).all()
    assert (cleared[:, :, 2] == 0).all()
    torch.testing.assert_close(barred[:, :, allowed], log_key[:, :, allowed])
    assert forbid(log_key, value, None) == (log_key, value)


def test_biases_are_of_keys() -> None:
    assert key_bias("linear", None, torch.float32) is None
    added = key_bias("linear", torch.tensor([0.5, -math.inf]), torch.float64)
    assert added is not None
    assert added.flatten().tolist() == [0.5, -math.inf]
    assert added.shape == (1, 1, 2, 1)
    with pytest.raises(ValueError, match=r"linear: attn_mask must be the same for every query.*got \(3, 2\)"):
        key_bias("linear", torch.zeros(3, 2), torch.float32)
