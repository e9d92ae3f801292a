"""Baselines: what they keep, and ratios that they refuse."""

from __future__ import annotations

import pytest
import torch

from dynattn.pruning import FirstTokens, RandomTokens
from tests.pruning.models import inputs, make


def test_baselines_check_their_ratios():
    for cls in (RandomTokens, FirstTokens):
        with pytest.raises(ValueError, match=f"{cls.__name__}: keep must be above 0"):
            cls(0.0)


def test_what_baselines_keep():
    model, given = make("bert"), inputs("bert")
    kept = {}
    for method in (FirstTokens(0.5), RandomTokens(0.5), RandomTokens(0.5, seed=1)):
        with torch.no_grad(), method.apply(model) as trace:
            model(**given)
        kept[method] = trace.last.survivors
        assert kept[method].sum(1).tolist() == [9, 6, 3]
    first, one, other = kept.values()
    assert all(row[:count].all() for row, count in zip(first, (9, 6, 3), strict=True))
    assert not torch.equal(one, first)
    assert not torch.equal(one, other)
