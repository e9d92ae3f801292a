"""Boxes that remember what moves: what they forget not, and whose symbols are whose."""

# pyright: reportArgumentType=false, reportCallIssue=false, reportAttributeAccessIssue=false

from __future__ import annotations

import pytest
import torch

from dynattn.verify import Affine, Box
from tests.verify.sampling import follow, hold


def affine(radius: float = 0.5, seed: int = 0, *shape: int) -> Affine:
    generator = torch.Generator().manual_seed(seed)
    return Affine.around(torch.randn(*(shape or (2, 3, 4)), generator=generator, dtype=torch.float64), radius)


def test_a_number_less_itself_is_nothing():
    x = affine()
    for function in (lambda x: x - x, lambda x: 3 * x - x * 3, lambda x: x.transpose(0, 1).transpose(0, 1) - x):
        assert follow(function, x).upper.abs().max() < 1e-12
        assert function(x.plain).upper.min() > 0.9  # a box of ends alone does not know


def test_only_what_moves_has_a_symbol():
    moves = torch.zeros(2, 3)
    moves[:, 1] = torch.tensor([0.1, 0.3])
    x = Affine.around(torch.ones(2, 3), moves)
    assert x.below.slopes.shape == (2, 2, 3)
    torch.testing.assert_close(x.radius, moves)
    still = Affine.around(torch.ones(2, 3), 0.0)
    assert still.below.slopes.shape == (1, 2, 3)
    assert torch.equal((still + still).lower, 2 * torch.ones(2, 3))


@pytest.mark.parametrize("radius", [-0.1, float("nan")])
def test_a_radius_is_not_negative(radius: float):
    with pytest.raises(ValueError, match="lower must not exceed upper"):
        Affine.around(torch.zeros(2), radius)


MOVES = {
    "reshape": lambda x: x.transpose(1, 2).reshape(8, 3).unflatten(0, (2, 4)),
    "slices": lambda x: x[:, 1:, ::2],
    "a row": lambda x: x[0],
    "indices": lambda x: x[:, torch.tensor([2, 0, 0])],
    "one of several": lambda x: x.chunk(2, -1)[1] - x.chunk(2, -1)[0],
    "unbound": lambda x: x.unbind(1)[2],
    "repeated": lambda x: x.repeat_interleave(2, 1) + x.repeat(1, 2, 1),
    "minus": lambda x: 1 - (-x),
    "beside a tensor of more dimensions": lambda x: x[0, 0] + torch.ones(5, 3, 4, dtype=torch.float64),
    "by a tensor of more dimensions": lambda x: x[0] * torch.linspace(-1, 1, 5, dtype=torch.float64)[:, None, None],
    "masked, of more dimensions": lambda x: x[0, 0].masked_fill(torch.eye(4, dtype=torch.bool), 7.0),
    "beside itself": lambda x: torch.cat([x, 2 * x, torch.ones(2, 3, 1, dtype=torch.float64)], 2),
    "beside itself, from the front": lambda x: torch.cat([x, -x], 0),
}


@pytest.mark.parametrize("name", MOVES)
def test_moves_take_the_symbols_along(name: str):
    found = follow(MOVES[name], affine(), count=6)
    assert isinstance(found, Affine)


def test_symbols_of_two_boxes_are_not_the_same():
    """As many of each: nothing but their origin tells them apart."""
    x, y = affine(0.5), affine(0.5, 1)
    for function in (lambda x, y: x - y, lambda x, y: x * y, lambda x, y: torch.cat([x, y], 0)):
        hold(function, [x, y])
    assert bool(((x - y).radius > 0.99).all())


def test_functions_without_a_rule_of_their_own_take_the_ends():
    x, ends = affine(), affine().plain
    with pytest.raises(NotImplementedError, match="topk must be a function that has a rule"):
        torch.topk(x, 2)
    assert type(x.plain) is Box
    assert torch.equal((x.plain + 0.0).upper, ends.upper)


def test_where_forgets_the_rest():
    x = affine()
    mask = torch.rand(2, 3, 4, generator=torch.Generator().manual_seed(2)) > 0.5
    wide = Box(x.lower - 1, x.upper + 1)
    found = x.where(mask, wide)
    assert torch.equal(found.upper, torch.where(mask, x.upper, wide.upper))
    assert torch.equal(found.lower, torch.where(mask, x.lower, wide.lower))
    less = found - x
    assert less.upper[mask].abs().max() < 1e-12
    assert less.upper[~mask].min() > 1.9
