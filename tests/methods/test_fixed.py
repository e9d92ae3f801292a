import pytest
import torch

from dynattn import Fixed
from dynattn.methods import Rows
from tests.methods.oracle import Scores, agrees


@pytest.mark.parametrize(("ratio", "every"), [(0.5, 2), (0.2, 5), (1 / 3, 3), (1.0, 1)])
def test_every_cth_key(ratio: float, every: int) -> None:
    def rule(s: Scores, _: int) -> list[set[int]]:
        return [set(range(0, len(row), every)) for row in s]

    agrees(Fixed(ratio), rule)


@pytest.mark.parametrize(("ratio", "tenths"), [(0.3, 3), (0.7, 7), (0.9, 9)])
def test_other_shares_are_spread_evenly_and_exact(ratio: float, tenths: int) -> None:
    s = torch.zeros(1, 1, 2, 100)
    kept = Fixed(ratio).choose(s, Rows(s, s, 0, 1.0))[0, 0]
    assert kept.shape == (2, 100)
    assert (kept.unflatten(1, (10, 10)).sum(-1) == tenths).all()  # of every ten keys
    assert kept[:, 0].all()


@pytest.mark.parametrize(
    ("ratio", "error"), [(1, TypeError), ("0.5", TypeError), (0.0, ValueError), (1.1, ValueError), (1e-9, ValueError)]
)
def test_refusals(ratio: float, error: type[Exception]) -> None:
    with pytest.raises(error, match="Fixed: ratio must be"):
        Fixed(ratio)
