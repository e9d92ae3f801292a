import math

import pytest
import torch

import dynattn
from dynattn import Threshold
from dynattn.methods import Rows
from tests.methods.oracle import Scores, agrees, inputs


def rule(least: float):
    def choose(s: Scores, _: int) -> list[set[int]]:
        chosen = []
        for row in s:
            weights = [math.exp(score) for score in row]
            total = sum(weights)
            taken = {j for j, weight in enumerate(weights) if total and weight / total > least}
            if total:
                taken.add(row.index(max(row)))
            chosen.append(taken)
        return chosen

    return choose


@pytest.mark.parametrize("least", [0.0, 0.013, 0.0567, 0.3, 0.99])
def test_definition(least: float) -> None:
    agrees(Threshold(least), rule(least))


def test_weights_equal_to_the_threshold_are_dropped_but_the_first_of_them_is_kept() -> None:
    s = torch.zeros(1, 1, 1, 4)
    assert Threshold(0.25).choose(s, Rows(s, s, 0, 1.0)).tolist() == [[[[True, False, False, False]]]]
    assert Threshold(0.2499).choose(s, Rows(s, s, 0, 1.0)).all()


def test_what_is_lost_is_at_most_the_threshold_for_each_key_dropped() -> None:
    torch.manual_seed(0)
    query, key, value = 2 * torch.randn(3, 1, 2, 64, 8, dtype=torch.float64)
    _, aux = dynattn.attention(query, key, value, Threshold(0.02), return_aux=True)
    assert (1 - aux.kept_mass <= 0.02 * 64).all()
    assert (aux.density <= (1 / 0.02 + 1) / 64).all()
    assert (aux.density < 0.5).all()


def test_nan_reaches_the_output() -> None:
    query, key, value = inputs()
    key[0, 0, 7] = math.nan
    out = dynattn.attention(query, key, value, Threshold(0.1))
    assert out[0, :2].isnan().all()
    assert out[0, 2:].isfinite().all()


@pytest.mark.parametrize(
    ("least", "error", "text"),
    [
        (0, TypeError, "least must be a float"),
        (1.0, ValueError, "least must be at least 0 and below 1"),
        (-0.1, ValueError, "least must be at least 0"),
        (-0.0, ValueError, "least must be at least 0"),
        (math.nan, ValueError, "least must be at least 0"),
    ],
)
def test_refusals(least: float, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=f"Threshold: {text}"):
        Threshold(least)
