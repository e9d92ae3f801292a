"""Scores against a loop: which key a head shares, what masks and causality forbid, where NaN stays out."""

from __future__ import annotations

import math

import pytest
import torch

from dynattn.maths.positions import distance
from dynattn.maths.scores import arithmetic_dtype, per_head, scores


@pytest.mark.parametrize("offset", [0, 2, -3])
def test_scores_are_scaled_products_of_the_keys_that_a_head_shares(offset: int) -> None:
    query, key = torch.randn(2, 4, 5, 3, dtype=torch.float64), torch.randn(2, 2, 6, 3, dtype=torch.float64)
    found = scores(query, key, None, True, 0.5, offset)
    for h in range(4):
        for i in range(5):
            for j in range(6):
                want = -math.inf if j > i + offset else 0.5 * float(query[1, h, i] @ key[1, h // 2, j])
                assert found[1, h, i, j].item() == pytest.approx(want)


def test_a_forbidden_pair_is_forbidden_whatever_its_score() -> None:
    query, key = torch.full((1, 1, 1, 2), torch.nan), torch.ones(1, 1, 3, 2)
    allowed = torch.tensor([True, False, True])
    assert scores(query, key, allowed, False, 1.0)[0, 0, 0].isnan().tolist() == [True, False, True]
    added = torch.tensor([0.0, -math.inf, 1.0])
    assert scores(query, key, added, False, 1.0)[0, 0, 0, 1] == -math.inf
    finite = scores(torch.ones(1, 1, 1, 2), key, added, False, 1.0)
    assert finite.flatten().tolist() == [2.0, -math.inf, 3.0]


def test_half_precision_is_computed_in_float32() -> None:
    assert [arithmetic_dtype(d) for d in (torch.float16, torch.bfloat16, torch.float32)] == [torch.float32] * 3
    assert arithmetic_dtype(torch.float64) == torch.float64
    halves = torch.randn(1, 2, 3, 4, dtype=torch.bfloat16)
    assert scores(halves, halves, None, False, 1.0).dtype == torch.float32


def test_heads_share_neighbouring_keys_and_distances_grow_with_the_query() -> None:
    x = torch.arange(2.0).view(1, 2, 1, 1)
    assert per_head(x, 6).flatten().tolist() == [0, 0, 0, 1, 1, 1]
    assert per_head(x, 2) is x
    assert distance(torch.zeros(2, 3), 5).tolist() == [[5, 4, 3], [6, 5, 4]]
