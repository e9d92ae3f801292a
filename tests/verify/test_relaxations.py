"""Every rule's two functions hold what its function gives, and are tighter than ends where numbers hang together."""

# pyright: reportArgumentType=false, reportCallIssue=false, reportAttributeAccessIssue=false

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn import functional as F

import dynattn
from dynattn import NM
from dynattn.methods import parse
from dynattn.verify import Affine, Box
from dynattn.verify.relaxations import mixed, weights
from tests.verify.sampling import follow, members
from tests.verify.test_rules import ONE, WEIGHT

OTHER = torch.randn(4, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
TOGETHER: dict[str, Callable[[Any], Any]] = {
    "product with a mapped self": lambda x: x * (x @ WEIGHT[:4].T),
    "quotient": lambda x: x / (x.square() + 1.0),
    "quotient by what is negative": lambda x: x / (-x.square() - 1.0),
    "matrices": lambda x: x @ x.transpose(-1, -2),
    "matrices of projections": lambda x: (x @ OTHER) @ (x @ OTHER.flip(0)).transpose(-1, -2),
    "a matrix from both sides": lambda x: (WEIGHT[:, :3] @ x) @ OTHER,
    "scaled sum": lambda x: torch.add(x, x, alpha=-2),
    "two layers": lambda x: F.linear(torch.relu(F.linear(x, WEIGHT)), WEIGHT.T),
    "gated": lambda x: F.silu(x) * (x @ WEIGHT[:4]),
}


def affine(radius: float, seed: int = 0) -> Affine:
    generator = torch.Generator().manual_seed(seed)
    center, share = (torch.randn(2, 3, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    return Affine.around(center, radius * share.abs())


@pytest.mark.parametrize("name", [*ONE, *TOGETHER])
@pytest.mark.parametrize("radius", [1e-9, 2.0])
def test_its_functions_hold_what_the_function_gives(name: str, radius: float):
    found = follow((ONE | TOGETHER)[name], affine(radius), count=6)
    assert isinstance(found, Affine), "the rule for affine bounds was not found"
    if radius == 1e-9:
        assert found.radius.max() < 1e-6


@pytest.mark.parametrize(
    ("name", "share"),
    [("scaled sum", 0.34), ("matrices of projections", 0.9), ("product with a mapped self", 0.97), ("gated", 0.97),
     ("two layers", 0.97), ("quotient", 0.97)],
)  # fmt: skip
def test_what_hangs_together_is_bounded_more_tightly(name: str, share: float):
    x = affine(0.1)
    assert TOGETHER[name](x).radius.sum() < share * TOGETHER[name](x.plain).radius.sum()


@pytest.mark.parametrize("name", ["exp", "square", "relu", "quotient"])
def test_lines_touch_the_function(name: str):
    """Of one number: the chord is reached at both ends, and a tangent or the line through 0 between them."""
    quotient: Callable[[Any], Any] = lambda x: (x * 0.0 + 1.0) / x  # noqa: E731
    function = quotient if name == "quotient" else ONE[name]
    x = Affine.around(torch.tensor([0.4 if name != "quotient" else 1.5], dtype=torch.float64), 0.7)
    found = function(x)
    moves = torch.linspace(-1, 1, 2001, dtype=torch.float64)
    value = function(x.center + 0.7 * moves)
    above = found.above.at + moves * found.above.slopes[0] - value
    below = value - found.below.at - moves * found.below.slopes[0]
    assert float(above.min()) > -1e-12
    assert float(below.min()) > -1e-12
    assert float(below.min()) < 1e-6
    if name != "quotient":  # which is two functions, one behind the other
        assert float(above[[0, -1]].max()) < 1e-12


def test_scores_that_move_together_leave_weights_as_they_are():
    """One symbol moves all scores of a row alike: a softmax does not see it, and intervals do."""
    shift = Affine.around(torch.zeros(1, dtype=torch.float64), 1.0)
    s = shift + torch.randn(3, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = follow(lambda e: (e + s.center).softmax(-1), shift)
    assert found.radius.max() < 1e-12
    assert s.plain.softmax(-1).radius.max() > 0.1


def test_weights_share_what_is_common_to_values():
    """Values with a large common part: weights sum to 1, so that what is unknown of them does not count against it."""
    s, some = affine(0.3), torch.ones(2, 3, dtype=torch.bool)
    kept = torch.ones(2, 3, 4, dtype=torch.bool)
    weight = weights(s, kept, s.plain.softmax(-1), kept)
    value = torch.randn(2, 4, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    near = mixed(weight, value, some)
    far = mixed(weight, value + 1000.0, some)
    torch.testing.assert_close(far.radius, near.radius)
    assert ((weight @ (value + 1000.0)).radius > 10 * near.radius).all()


def test_scores_too_far_apart_fall_back_to_ends():
    s = affine(40.0)
    found = s.softmax(-1)
    assert bool(found.below.at.isfinite().all())
    for (its,) in members([s], 20):
        assert found.holds(its.softmax(-1), 1e-12)
    masked = affine(0.1).masked_fill(torch.tensor([True, False, False, True]), -torch.inf).softmax(-1)
    assert torch.equal(masked.upper[..., 0], torch.zeros(2, 3, dtype=torch.float64))


METHODS = ["dense", "nm-1-2", "topk-3"]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("radius", [0.01, 0.4])
@pytest.mark.parametrize("masked", [False, True])
def test_attention_of_projections_of_one_input(method: str, radius: float, masked: bool):
    """Queries, keys and values move together; two query heads share a key head; a row may attend nothing."""
    generator = torch.Generator().manual_seed(0)
    maps = [torch.randn(8, heads * 4, generator=generator, dtype=torch.float64) / 3 for heads in (4, 2, 2)]
    mask = None
    if masked:
        mask = torch.rand(5, 5, generator=generator) > 0.3
        mask[2] = False

    def function(x: Any) -> Any:
        query, key, value = ((x @ m).unflatten(-1, (-1, 4)).transpose(1, 2) for m in maps)
        return dynattn.attention(query, key, value, parse(method), attn_mask=mask, causal=not masked)

    center = torch.randn(1, 5, 8, generator=generator, dtype=torch.float64)
    moves = torch.zeros(1, 5, 8, dtype=torch.float64)
    moves[:, [1, 4]] = radius
    start = Affine.around(center, moves)
    found = follow(function, start, count=6)
    assert isinstance(found, Affine)
    plain = function(Box(start.lower, start.upper))
    if radius == 0.01:
        assert found.radius.sum() < 0.9 * plain.radius.sum()
    if masked:
        assert found.upper[:, :, 2].abs().max() == 0


def test_values_alone_or_scores_alone_may_move():
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(1, 2, 4, 3, generator=generator, dtype=torch.float64) for _ in range(3))
    for place in range(3):

        def function(x: Any, place: int = place) -> Any:
            given = [query, key, value]
            given[place] = x
            return dynattn.attention(*given, NM(1, 1))

        follow(function, Affine.around([query, key, value][place], 0.1), count=10)
