"""Column sums a block at a time are those of the whole matrix."""

from __future__ import annotations

import pytest
import torch

from dynattn.pruning.importance import probabilities, received


@pytest.mark.parametrize("length", [1, 7, 128, 129, 300])
@pytest.mark.parametrize("padded", [False, True])
def test_blocks_are_the_whole(length, padded):
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 2, 5, length, 8, dtype=torch.float64)
    alive = None
    if padded:
        alive = torch.rand(2, length) > 0.5
        alive[:, -1] = True
    sums, out = received(query, key, 0.3, alive, value)
    p = probabilities(query, key, 0.3, alive)
    for sample in range(2):
        left = torch.ones(length, dtype=torch.bool) if alive is None else alive[sample]
        torch.testing.assert_close(sums[sample], p[sample, :, left].sum(1))
        assert out is not None
        torch.testing.assert_close(out[sample, left].transpose(0, 1), p[sample, :, left] @ value[sample])
        assert sums[sample, :, ~left].eq(0).all()
        assert sums[sample].sum(1).tolist() == pytest.approx([int(left.sum())] * 5)
    assert received(query, key, 0.3, alive).out is None


def test_small_blocks(monkeypatch):
    monkeypatch.setattr("dynattn.pruning.importance._BLOCK", 3)
    monkeypatch.setattr("dynattn.pruning.importance._ELEMENTS", 70)
    test_blocks_are_the_whole(10, True)


def test_differentiable():
    torch.manual_seed(0)
    query, key, value = (torch.randn(1, 2, 5, 4, dtype=torch.float64, requires_grad=True) for _ in range(3))
    alive = torch.tensor([[True, True, False, True, True]])

    def both(*x):
        sums, out = received(x[0], x[1], 0.5, alive, x[2])
        assert out is not None
        return sums, out

    assert torch.autograd.gradcheck(both, (query, key, value))
    with torch.no_grad():
        sums, out = both(query, key, value)
    whole_sums, whole_out = both(query, key, value)
    torch.testing.assert_close(sums, whole_sums)
    torch.testing.assert_close(out[0, alive[0]], whole_out[0, alive[0]])
