import math

import pytest
import torch

import dynattn
from dynattn import NM, TopK
from dynattn.methods import Rows
from tests.methods.oracle import Scores, agrees, inputs


def rule(k: int | None = None, numerator: int = 0, denominator: int = 1, floor: int = 0):
    """Take the best key that is left, the first of several, until there are enough."""

    def choose(s: Scores, _: int) -> list[set[int]]:
        chosen = []
        for row in s:
            left = [j for j, score in enumerate(row) if score != -math.inf]
            count = k if k is not None else max(floor, math.ceil(len(left) * numerator / denominator))
            taken: set[int] = set()
            while left and len(taken) < count:
                best = left[0]
                for j in left:
                    if row[j] > row[best]:
                        best = j
                taken.add(best)
                left.remove(best)
            chosen.append(taken)
        return chosen

    return choose


@pytest.mark.parametrize("k", [1, 5, 100])
def test_count(k: int) -> None:
    agrees(TopK(k=k), rule(k))


@pytest.mark.parametrize(("ratio", "exact"), [(0.25, (1, 4)), (0.3, (3, 10)), (1 / 3, (1, 3)), (1.0, (1, 1))])
def test_ratio_is_of_the_rows_allowed_keys(ratio: float, exact: tuple[int, int]) -> None:
    agrees(TopK(ratio=ratio, floor=0), rule(None, *exact))


@pytest.mark.parametrize("floor", [3, 6, 32])
def test_a_share_keeps_no_fewer_than_the_floor(floor: int) -> None:
    agrees(TopK(ratio=0.3, floor=floor), rule(None, 3, 10, floor))
    agrees(TopK(ratio=0.3), rule(None, 3, 10, 32), [(5, 130), (40, 40)])


def test_nan_counts_as_the_largest_and_masked_is_never_kept() -> None:
    s = torch.tensor([[1.0, math.nan, 3.0, -math.inf], [2.0, 2.0, 2.0, 2.0], [-math.inf] * 4])[None, None]
    kept = TopK(k=2).choose(s, Rows(s, s, 0, 1.0)) & (s != -math.inf)
    assert kept[0, 0].tolist() == [[False, True, True, False], [True, True, False, False], [False] * 4]
    query, key, value = inputs()
    key[0, 0, 7] = math.nan
    out = dynattn.attention(query, key, value, TopK(k=3))
    assert out[0, :2].isnan().all()  # the two query heads that read this key
    assert out[0, 2:].isfinite().all()


def test_keeps_the_most_mass_of_its_density() -> None:
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 1, 2, 64, 8)
    mass = {
        method.name: dynattn.attention(query, key, value, method, return_aux=True)[1].kept_mass
        for method in (TopK(ratio=0.5, floor=0), NM(2, 4), dynattn.Fixed(0.5), dynattn.Random(0.5, floor=0))
    }
    for name in ("nm-2-4", "fixed-0.5", "random-0.5-f0"):
        assert (mass["topk-0.5-f0"] >= mass[name] - 1e-6).all()


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({}, TypeError, "give one of k and ratio: got k=None, ratio=None"),
        ({"k": 3, "floor": 8}, ValueError, "floor must be left out beside k: got 8"),
        ({"ratio": 0.5, "floor": -1}, ValueError, "floor must be between 0 and"),
        ({"ratio": 0.5, "floor": 1.0}, TypeError, "floor must be an int"),
        ({"k": 3, "ratio": 0.5}, TypeError, "give one of k and ratio"),
        ({"k": 0}, ValueError, "k must be between 1 and"),
        ({"k": 2.0}, TypeError, "k must be an int"),
        ({"k": 0.25}, TypeError, r"k must be an int: got 0.25; try .*, or TopK\(ratio=0.25\) for a share"),
        ({"k": True}, TypeError, "k must be an int"),
        ({"ratio": 1}, TypeError, "ratio must be a float"),
        ({"ratio": 0.0}, ValueError, "ratio must be between 1e-6 and 1"),
        ({"ratio": 1.5}, ValueError, "ratio must be between 1e-6 and 1"),
        ({"ratio": math.nan}, ValueError, "ratio must be between 1e-6 and 1"),
    ],
)
def test_refusals(arguments: dict, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=f"TopK: {text}"):
        TopK(**arguments)
