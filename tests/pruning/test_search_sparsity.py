"""The search of the layers' shares: the mean stays, cheap layers are found, and what is refused."""

from __future__ import annotations

import random

import pytest
import torch

from dynattn.pruning import FTP
from dynattn.pruning.search_sparsity import _in_proportion, _mean, _moved, search_sparsity
from tests.pruning.test_ftp import router
from tests.pruning.walks import decoder, texts


@pytest.mark.parametrize("total", [0, 1, 499, 2500, 4999, 5000])
def test_whatever_happens_to_shares_their_sum_stays(total: int) -> None:
    drawn = random.Random(0)
    for _ in range(50):
        one, other = (_in_proportion([drawn.random() ** 4 + 1e-9 for _ in range(5)], total) for _ in range(2))
        for shares in (one, _moved(one, 9, drawn), _mean(one, other)):
            assert sum(shares) == total
            assert all(0 <= share <= 1000 for share in shares)


def test_shares_are_in_proportion_and_cut_at_the_whole() -> None:
    assert _in_proportion([1, 3, 0.5, 0.5], 500) == (100, 300, 50, 50)
    assert _in_proportion([100, 1, 2], 1300) == (1000, 100, 200)
    assert _mean((1, 4, 0), (2, 1, 2)) == (1, 3, 1)


@pytest.mark.parametrize("judge", [None, router()])
def test_layers_that_do_little_skip_most(judge) -> None:
    model, given = decoder(layers=5), texts()
    with torch.no_grad():
        for layer in (model.layers[1], model.layers[3]):
            layer.self_attn.o_proj.weight.mul_(0.01)
            layer.mlp.down_proj.weight.mul_(0.01)
    found = search_sparsity(model, [given] * 2, sparsity=0.3, router=judge, population=6, generations=4)
    assert sum(found.sparsity) == pytest.approx(1.5)
    assert found.sparsity[1] + found.sparsity[3] > 1.2
    assert len(found.distances) == 4
    assert sorted(found.distances, reverse=True) == found.distances
    with torch.no_grad(), FTP(found.sparsity).apply(model) as trace:
        model(**given)
    assert float(trace.last.skipped[0]) == pytest.approx(0.3, abs=1 / 13)
    again = search_sparsity(model, [given] * 2, sparsity=0.3, router=judge, population=6, generations=4)
    assert again == found


def test_what_cannot_be_searched_is_refused() -> None:
    model, given = decoder(layers=1), texts()
    for wrong in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match=f"sparsity must be between 0 and 1: got {wrong}"):
            search_sparsity(model, [given], sparsity=wrong)
    with pytest.raises(ValueError, match="population must be at least 2: got 1"):
        search_sparsity(model, [given], sparsity=0.2, population=1)
    with pytest.raises(ValueError, match="generations must be at least 1: got 0"):
        search_sparsity(model, [given], sparsity=0.2, generations=0)
    with pytest.raises(ValueError, match="batches must hold at least one"):
        search_sparsity(model, [], sparsity=0.2)
    assert search_sparsity(model, [given], sparsity=0.2, population=2, generations=2).sparsity == (0.2,)
    with pytest.raises(ValueError, match="must be in eval mode"):
        search_sparsity(model.train(), [given], sparsity=0.2)
