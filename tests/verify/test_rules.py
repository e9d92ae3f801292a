"""Every rule holds what its function gives, and no more where it can be exact."""

# pyright: reportArgumentType=false, reportCallIssue=false, reportAttributeAccessIssue=false

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dynattn.verify import Box
from tests.verify.sampling import hold

WEIGHT = torch.randn(5, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
ONE: dict[str, Callable[[Any], Any]] = {
    "linear": lambda x: F.linear(x, WEIGHT, WEIGHT[:, 0]),
    "linear without bias": lambda x: F.linear(x, WEIGHT),
    "relu": torch.relu,
    "F.relu": F.relu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "exp": torch.exp,
    "gelu": F.gelu,
    "silu": F.silu,
    "square": torch.square,
    "softmax": lambda x: x.softmax(-1),
    "softmax of columns": lambda x: F.softmax(x, dim=1),
    "layer norm": lambda x: F.layer_norm(x, (4,), WEIGHT[0], WEIGHT[1]),
    "layer norm alone": lambda x: F.layer_norm(x, (4,)),
    "mean": lambda x: x.mean(1),
    "mean of all": lambda x: x.mean(),
    "sum": lambda x: x.sum(-1, keepdim=True),
    "half": lambda x: x / 2,
    "less": lambda x: 1 - x,
    "times": lambda x: x * WEIGHT[0],
    "times, from the left": lambda x: WEIGHT[0] * x,
    "plus, from the left": lambda x: WEIGHT[0] + x,
    "minus, from the left": lambda x: WEIGHT[0] - x,
    "negative": lambda x: -x,
    "matrix": lambda x: x @ WEIGHT.T,
    "matrix, from the left": lambda x: WEIGHT[:, :3] @ x,
    "masked": lambda x: x.masked_fill(WEIGHT[:3] > 0, -1.0),
    "beside a tensor": lambda x: torch.cat([x, WEIGHT[:3].expand(2, 3, 4)], 1),
    "dropout": lambda x: F.dropout(x, 0.5, training=False),
}
TWO: dict[str, Callable[[Any, Any], Any]] = {
    "sum": lambda x, y: x + y,
    "sum with a factor": lambda x, y: torch.add(x, y, alpha=-2),
    "difference": lambda x, y: x - y,
    "product": lambda x, y: x * y,
    "quotient": lambda x, y: x / (y.sigmoid() + 0.5),
    "matrices": lambda x, y: x @ y.transpose(-1, -2),
    "side by side": lambda x, y: torch.cat([x, y], -1),
}


def box(radius: float, seed: int = 0) -> Box:
    generator = torch.Generator().manual_seed(seed)
    center, share = (torch.randn(2, 3, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    return Box.around(center, radius * share.abs())


@pytest.mark.parametrize("name", ONE)
@pytest.mark.parametrize("radius", [0.0, 0.1, 2.0])
def test_it_holds_what_the_function_gives(name: str, radius: float):
    found = hold(ONE[name], [box(radius)])
    if radius == 0:
        assert found.radius.max() < 1e-12


@pytest.mark.parametrize("name", TWO)
@pytest.mark.parametrize("radius", [0.0, 0.1, 2.0])
def test_it_holds_what_the_function_of_two_gives(name: str, radius: float):
    found = hold(TWO[name], [box(radius), box(radius, 1)])
    if radius == 0:
        assert found.radius.max() < 1e-12


@pytest.mark.parametrize("name", ["linear", "relu", "gelu", "silu", "square", "softmax", "sum", "matrix"])
def test_every_bound_is_reached(name: str):
    """By the corners and the valley of a function of three numbers."""
    center, radius = torch.tensor([[0.3, -0.9, 0.1]], dtype=torch.float64), 0.5
    function = (lambda x: x @ WEIGHT[:3, :3].T) if name in ("matrix", "linear") else ONE[name]
    found = function(Box.around(center, radius))
    steps = torch.linspace(-radius, radius, 41, dtype=torch.float64)
    moves = torch.cartesian_prod(steps, steps, steps)
    given = torch.stack([function(center + move) for move in moves])
    torch.testing.assert_close(given.amin(0), found.lower, rtol=0, atol=2e-3)
    torch.testing.assert_close(given.amax(0), found.upper, rtol=0, atol=2e-3)


def test_a_normalised_number_is_never_beyond_its_largest_value():
    """However wide the box: √(d - 1), which one number far from the others reaches."""
    found = F.layer_norm(box(1e6), (4,))
    assert found.upper.max() <= 3**0.5 + 1e-12
    assert found.lower.min() >= -(3**0.5) - 1e-12


@pytest.mark.parametrize(("function", "least"), [(F.gelu, -0.7517915), (F.silu, -1.2784645)])
def test_ends_that_round_below_the_valley(function: Callable[[Any], Any], least: float):
    center = torch.full((200,), least)
    for radius in (0.0, 1e-7, 1e-6, 1e-5, 1e-4):
        around = Box(center - torch.linspace(0, radius, 200), center + torch.linspace(radius, 0, 200))
        found = function(around)
        for x in (around.lower, around.upper, center):
            assert found.holds(function(x), 1e-7)


def test_matrices_in_parts_are_those_at_once(monkeypatch: pytest.MonkeyPatch):
    x, y = box(0.3), box(0.3, 1)
    whole = x @ y.mT
    monkeypatch.setattr("dynattn.verify.rules._AT_ONCE", 1)
    parts = x @ y.mT
    assert torch.equal(whole.lower, parts.lower)
    assert torch.equal(whole.upper, parts.upper)


@pytest.mark.parametrize(
    ("function", "error", "words"),
    [
        (lambda x: x / x, ValueError, "a divisor must not reach 0"),
        (lambda x: F.gelu(x, approximate="tanh"), NotImplementedError, "approximate must be 'none'"),
        (lambda x: F.dropout(x, 0.5, training=True), ValueError, "dropout must be off"),
        (lambda x: F.layer_norm(x, (3, 4)), NotImplementedError, "must be over the last dimension"),
    ],
)
def test_what_has_no_bound_is_refused(function: Callable[[Any], Any], error: type[Exception], words: str):
    with pytest.raises(error, match=words):
        function(box(2.0))


def test_a_module_of_functions_takes_boxes():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.LayerNorm(8), nn.Dropout(0.1), nn.Linear(8, 2), nn.Tanh())
    hold(module.double().eval(), [box(0.2)])


def test_bounds_have_gradients():
    center = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)

    def width(center: Tensor) -> Tensor:
        return F.softmax(F.layer_norm(F.gelu(Box.around(center, 0.1)), (4,)), dim=-1).radius.sum()

    assert torch.autograd.gradcheck(width, (center,))
