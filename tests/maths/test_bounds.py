"""Bounds of blocks of scores, against each query's bound by hand."""

import math

import pytest
import torch

from dynattn.maths import bounds
from tests.methods.oracle import inputs, padding


@pytest.mark.parametrize("scale", [0.5, -0.5])
@pytest.mark.parametrize("causal", [False, True])
def test_bounds_are_the_mean_of_each_querys_bound_and_no_score_lies_above_it(scale: float, causal: bool) -> None:
    query, key, _ = inputs(11, 14, heads=1, kv_heads=1)
    s = scale * query @ key.mT
    if causal:
        s = s.masked_fill(torch.ones(11, 14, dtype=torch.bool).triu(4), -math.inf)
    s = s.masked_fill(~padding(14, 14, 9), -math.inf)
    value, some = bounds.of_scores(s, 4, query, key, scale)
    for b in range(2):
        for row, first in enumerate(range(0, 11, 4)):
            for column, start in enumerate(range(0, 14, 4)):
                queries, keys = range(first, min(first + 4, 11)), range(start, min(start + 4, 14))
                seen = [j for j in keys if any(s[b, 0, i, j] != -math.inf for i in queries)]
                assert bool(some[b, 0, row, column]) == bool(seen)
                if not seen:
                    continue
                of_query = []
                for i in queries:
                    terms = [[scale * float(query[b, 0, i, d] * key[b, 0, j, d]) for j in seen] for d in range(4)]
                    of_query.append(sum(map(max, terms)))
                    assert all(float(s[b, 0, i, j]) <= of_query[-1] + 1e-9 for j in seen)
                assert value[b, 0, row, column] == pytest.approx(sum(of_query) / len(of_query))
