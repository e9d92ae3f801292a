import math
from fractions import Fraction

import pytest
import torch

import dynattn
from dynattn import Mass, TopK
from dynattn.methods import Rows
from tests.methods.oracle import Scores, agrees, inputs


def rule(mass: float):
    """Take the best key that is left, the first of several, until those taken hold the share; sums are exact."""

    def choose(s: Scores, _: int) -> list[set[int]]:
        chosen = []
        for row in s:
            weights = {j: Fraction(math.exp(score)) for j, score in enumerate(row) if score != -math.inf}
            taken: set[int] = set()
            while len(taken) < len(weights):
                best = max((j for j in weights if j not in taken), key=lambda j: (row[j], -j))
                taken.add(best)
                if sum(weights[j] for j in taken) >= Fraction(mass) * sum(weights.values()):
                    break
            chosen.append(taken)
        return chosen

    return choose


@pytest.mark.parametrize("mass", [1e-6, 0.2913, 0.7013, 0.9517, 0.999, 1.0])
def test_definition(mass: float) -> None:
    agrees(Mass(mass), rule(mass))


def test_of_equal_weights_the_lower_keys_are_kept_and_the_one_that_reaches_the_share_is() -> None:
    s = torch.zeros(1, 1, 1, 4)
    for mass, count in ((0.001, 1), (0.25, 1), (0.251, 2), (0.5, 2), (0.75, 3), (0.76, 4), (1.0, 4)):
        kept = Mass(mass).choose(s, Rows(s, s, 0, 1.0))
        assert kept.tolist() == [[[[True] * count + [False] * (4 - count)]]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_certificate_holds_in_every_row_and_no_smaller_choice_has_it(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    query, key, value = (2 * torch.randn(1, 2, 200, 8, dtype=dtype) for _ in range(3))
    for mass in (0.3, 0.9, 0.95, 0.999):
        weights = (query @ key.mT / 8**0.5).masked_fill(torch.ones(200, 200).triu(1).bool(), -math.inf).softmax(-1)
        kept = Mass(mass).choose(weights.log(), Rows(query, key, 0, 1.0)) & (weights > 0)
        held = weights.where(kept, 0.0).sum(-1)
        assert (held >= mass - 1e-6).all()
        assert (held - weights.where(kept, 2.0).amin(-1) < mass + 1e-6).all()
        assert (weights.where(kept, 2.0).amin(-1) >= weights.where(~kept, 0.0).amax(-1)).all()
        _, aux = dynattn.attention(query, key, value, Mass(mass), causal=True, return_aux=True)
        assert (aux.kept_mass >= mass - 1e-6).all()


def test_keeps_no_more_pairs_than_top_k_of_as_much_mass() -> None:
    torch.manual_seed(0)
    query, key, value = 2 * torch.randn(3, 1, 2, 64, 8, dtype=torch.float64)
    _, ours = dynattn.attention(query, key, value, Mass(0.9), return_aux=True)
    for k in (8, 16, 24, 32, 40, 48):
        _, theirs = dynattn.attention(query, key, value, TopK(k=k), return_aux=True)
        if (theirs.kept_mass.amin(-1) >= 0.9).all():
            assert (ours.density < theirs.density).all()
            break
    else:
        pytest.fail("no top-k holds the share")


def test_the_share_of_all_is_dense_attention() -> None:
    query, key, value = inputs()
    dense = dynattn.attention(query, key, value, dynattn.NM(1, 1), causal=True)
    torch.testing.assert_close(dynattn.attention(query, key, value, Mass(1.0), causal=True), dense)
    spread = torch.tensor([[[[0.0, -300.0, 5.0, -math.inf]]]])  # weights of 0, by rounding
    assert Mass(1.0).choose(spread, Rows(spread, spread, 0, 1.0)).tolist() == [[[[True, True, True, False]]]]


def test_a_row_with_nothing_allowed_gives_zero() -> None:
    query, key, value = inputs()
    mask = torch.ones(13, 13, dtype=torch.bool)
    mask[4] = False
    out, aux = dynattn.attention(query, key, value, Mass(0.9), attn_mask=mask, return_aux=True)
    assert not out[:, :, 4].any()
    assert (aux.kept_mass[:, :, 4] == 1).all()
    assert (aux.logsumexp[:, :, 4] == -math.inf).all()
    assert Mass(0.9).choose(torch.empty(1, 1, 3, 0), Rows(query, key, 0, 1.0)).shape == (1, 1, 3, 0)


def test_nan_and_infinity_reach_the_output() -> None:
    for bad in (math.nan, math.inf):
        query, key, value = inputs()
        query[..., 0], key[0, 0, 7, 0] = 1.0, bad
        out = dynattn.attention(query, key, value, Mass(0.7))
        assert out[0, :2].isnan().all()
        assert out[0, 2:].isfinite().all()
    s = torch.tensor([[1.0, math.inf, math.nan, 3.0], [math.inf, 2.0, math.inf, 2.0]])[None, None]
    kept = Mass(0.7).choose(s, Rows(s, s, 0, 1.0))
    assert kept.tolist() == [[[[False, False, True, False], [True, False, False, False]]]]


@pytest.mark.parametrize(
    ("mass", "error", "text"),
    [
        (1, TypeError, "mass must be a float: got 1"),
        ("0.9", TypeError, "mass must be a float"),
        (True, TypeError, "mass must be a float"),
        (0.0, ValueError, "mass must be between 1e-6 and 1: got 0.0"),
        (-0.5, ValueError, "mass must be between 1e-6 and 1"),
        (1.01, ValueError, "mass must be between 1e-6 and 1"),
        (math.nan, ValueError, "mass must be between 1e-6 and 1"),
        (math.inf, ValueError, "mass must be between 1e-6 and 1"),
    ],
)
def test_refusals(mass: float, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=f"Mass: {text}"):
        Mass(mass)
