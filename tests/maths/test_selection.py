import math

import pytest
import torch

from dynattn.maths.selection import largest


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.int32, torch.int64])
def test_the_first_of_a_stable_sort(dtype: torch.dtype) -> None:
    scores = torch.randint(-3, 4, (5, 7, 23), generator=torch.Generator().manual_seed(0)).to(dtype)
    count = torch.randint(0, 30, (5, 7), generator=torch.Generator().manual_seed(1))
    order = scores.sort(dim=-1, descending=True, stable=True).indices
    want = torch.zeros_like(scores, dtype=torch.bool).scatter_(-1, order, torch.arange(23) < count[..., None])
    assert torch.equal(largest(scores, count), want)
    assert torch.equal(largest(scores, 4), want.scatter(-1, order, (torch.arange(23) < 4).expand(5, 7, 23)))


def test_nan_infinities_and_nothing() -> None:
    row = torch.tensor([1.0, math.nan, -math.inf, 5.0, math.inf])
    assert largest(row, 2).tolist() == [False, True, False, False, True]
    assert largest(row, 1).tolist() == [False, True, False, False, False]
    assert not largest(row, 0).any()
    assert largest(row, 9).all()
    assert largest(torch.empty(3, 0), 2).shape == (3, 0)
    assert largest(torch.empty(0, 4), 2).shape == (0, 4)
