"""Attention under decisions: a loop over kept keys for its values, its equation for its gradient."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import dynattn
from dynattn import NM
from dynattn.pruning.policy import attend

SCALE = 0.7


def inputs(length: int = 6, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    query, key, value = torch.randn(3, 2, 3, length, 4, generator=generator, dtype=torch.float64)
    return query, key, value[..., :3]


def loop(query: Tensor, key: Tensor, value: Tensor, kept: list[list[int]]) -> Tensor:
    """Softmax over the kept keys and the token itself, row by row."""
    out = torch.zeros(*query.shape[:3], value.shape[3], dtype=torch.float64)
    for b, h, i in ((b, h, i) for b in range(2) for h in range(3) for i in range(query.shape[2])):
        row = {
            j: math.exp(SCALE * float(query[b, h, i] @ key[b, h, j]))
            for j in range(key.shape[2])
            if kept[b][j] or j == i
        }
        for j, weight in row.items():
            out[b, h, i] += weight / sum(row.values()) * value[b, h, j]
    return out


DECISIONS = [[1, 0, 0, 1, 1, 0], [1, 1, 1, 1, 1, 1]], [[0, 0, 0, 0, 0, 0], [1, 0, 0, 0, 0, 0]]


@pytest.mark.parametrize("kept", DECISIONS)
def test_equals_the_loop_and_the_boolean_mask(kept):
    query, key, value = inputs()
    found = attend(query, key, value, torch.tensor(kept).double(), SCALE)
    torch.testing.assert_close(found, loop(query, key, value, kept))
    mask = torch.tensor(kept).bool()[:, None, None, :] | torch.eye(6, dtype=torch.bool)
    torch.testing.assert_close(found, dynattn.attention(query, key, value, NM(1, 1), attn_mask=mask, scale=SCALE))


def test_gradient_between_the_decisions():
    """The equation is defined for decisions between 0 and 1 as well: there differences can be taken."""
    query, key, value = inputs()
    generator = torch.Generator().manual_seed(1)
    decisions = 0.1 + 0.8 * torch.rand(2, 6, generator=generator, dtype=torch.float64)
    tensors = tuple(x.clone().requires_grad_() for x in (query, key, value, decisions))
    assert torch.autograd.gradcheck(lambda q, k, v, d: attend(q, k, v, d, SCALE), tensors)


def test_a_dropped_token_feels_what_it_would_change():
    """``d out_i / d D_j = e^{s_ij} / Σ_k G_ik e^{s_ik} · (v_j − out_i)`` for i ≠ j, at decisions of 0 and 1."""
    query, key, value = inputs()
    decisions = torch.tensor(DECISIONS[0]).double().requires_grad_()
    out = attend(query, key, value, decisions, SCALE)
    factor = torch.randn_like(out)
    (gradient,) = torch.autograd.grad((out * factor).sum(), decisions)
    expected = torch.zeros(2, 6, dtype=torch.float64)
    for b, h, i in ((b, h, i) for b in range(2) for h in range(3) for i in range(6)):
        scores = SCALE * key[b, h] @ query[b, h, i]
        total = sum(math.exp(scores[k]) for k in range(6) if decisions[b, k] or k == i)
        for j in range(6):
            if j != i:
                change = value[b, h, j] - out[b, h, i]
                expected[b, j] += math.exp(scores[j]) / total * float(change.detach() @ factor[b, h, i])
    torch.testing.assert_close(gradient, expected)
    assert bool((gradient[0] != 0).all())  # the three that are dropped too


def test_extreme_scores_stay_finite():
    """A dropped key far above the kept ones: weight 0, the others' softmax untouched, gradients bounded."""
    query, key, value = (x.float().requires_grad_() for x in inputs())
    far = torch.zeros(6)
    far[2] = 1e4
    decisions = torch.ones(2, 6).index_fill(1, torch.tensor([2]), 0.0).requires_grad_()
    out = attend(query, key + far[:, None], value, decisions, SCALE)
    gradients = torch.autograd.grad(out.square().sum(), (query, key, value, decisions))
    assert bool(out.isfinite().all())
    assert all(bool(g.isfinite().all()) for g in gradients)
    kept = [[1, 1, 0, 1, 1, 1]] * 2
    with torch.no_grad():
        expected = loop(query.double(), key.double(), value.double(), kept)
    rows = [0, 1, 3, 4, 5]  # row 2 attends to itself alone, nearly
    torch.testing.assert_close(out[:, :, rows], expected[:, :, rows].float())


def test_half_precision_keeps_its_dtype():
    query, key, value = (x.bfloat16() for x in inputs())
    out = attend(query, key, value, torch.ones(2, 6), SCALE)
    assert out.dtype == torch.bfloat16
    expected = attend(query.double(), key.double(), value.double(), torch.ones(2, 6), SCALE)
    assert (out.double() - expected).abs().max() < 0.02


@pytest.mark.parametrize("shape", [(2, 5), (1, 6), (2, 6, 1)])
def test_wrong_decisions_are_refused(shape):
    with pytest.raises(ValueError, match="decisions must be"):
        attend(*inputs(), torch.ones(shape), SCALE)
