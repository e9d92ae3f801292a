"""Blocks by mass, against the rule by loops."""

from typing import Any

import pytest
import torch

import dynattn
from dynattn import BlockMass
from dynattn.methods.blocks import ESTIMATES
from tests.methods.block_rules import FORCED, Values, holds, mean, rule, sampled_share


@pytest.mark.parametrize("forced", FORCED[:2], ids=str)
@pytest.mark.parametrize("mass", [0.3, 0.8, 1.0])
@pytest.mark.parametrize(("by", "values"), [("mean", mean), ("sampled", sampled_share)])
def test_mass(mass: float, by: str, values: Values, forced: dict[str, Any]) -> None:
    method = BlockMass(mass, 4, by, **forced)
    holds(method, rule(method, values), [(13, 13), (5, 40), (1, 1), (30, 13)])


def test_all_of_the_mass_is_all_of_the_pairs() -> None:
    """Also where other blocks have next to nothing, and their shares round to 0."""
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 1, 2, 64, 8)
    for by in sorted(ESTIMATES):
        method = BlockMass(1.0, 16, by, window=0, sinks=0)
        for backend in ("auto", "reference"):
            _, aux = dynattn.attention(60 * query, key, value, method, return_aux=True, backend=backend)
            assert aux.density.tolist() == [[1.0, 1.0]], (by, backend)


def test_mass_keeps_more_where_attention_is_flat() -> None:
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 1, 1, 256, 16)
    density = [
        dynattn.attention(sharp * query, key, value, BlockMass(0.8, 16), return_aux=True)[1].density
        for sharp in (0.0, 1.0, 4.0)
    ]
    assert density[0] > density[1] > density[2]


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ((1, 16), TypeError, "mass must be a float"),
        ((1.5, 16), ValueError, "mass must be between 1e-6 and 1"),
        ((0.5, 0), ValueError, "block must be between 1 and 1024"),
        ((0.5, 16, "best"), ValueError, "by must be one of"),
    ],
)
def test_refusals_of_mass(arguments: tuple, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=f"BlockMass: {text}"):
        BlockMass(*arguments)
