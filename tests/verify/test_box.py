"""Boxes as what stands for tensors."""

# pyright: reportArgumentType=false, reportCallIssue=false, reportAttributeAccessIssue=false

from __future__ import annotations

import re

import pytest
import torch
from torch import nn

from dynattn import verify
from dynattn.verify import Box
from dynattn.verify import box as of_boxes

ZERO = torch.zeros(2, 3)


@pytest.mark.parametrize(
    ("lower", "upper", "error", "words"),
    [
        (ZERO.half(), ZERO.half(), TypeError, "Box: lower must be a tensor of float32 or float64: got torch.float16"),
        (ZERO, 1.0, TypeError, "Box: upper must be a tensor of float32 or float64: got float"),
        (ZERO, torch.zeros(3), ValueError, "must agree in shape, dtype and device: got (2, 3) torch.float32 on cpu"),
        (ZERO, ZERO.double(), ValueError, "must agree in shape, dtype and device"),
        (ZERO, ZERO - 1, ValueError, "lower must not exceed upper, nor be NaN"),
        (ZERO, ZERO * torch.nan, ValueError, "lower must not exceed upper, nor be NaN"),
    ],
)
def test_what_is_no_box_is_refused(lower, upper, error, words):
    with pytest.raises(error, match=re.escape(words)):
        Box(lower, upper)


@pytest.mark.parametrize("radius", [-0.1, float("nan")])
def test_a_radius_is_not_negative(radius):
    with pytest.raises(ValueError, match="lower must not exceed upper"):
        Box.around(ZERO, radius)


def test_moves_are_those_of_both_ends():
    box = Box.around(torch.randn(2, 3, 4), torch.rand(2, 3, 4))
    moved = box.transpose(1, 2).reshape(8, 3).unflatten(0, (2, 4))[:, 1:].unsqueeze(0)
    for name in ("lower", "upper"):
        expected = getattr(box, name).transpose(1, 2).reshape(8, 3).unflatten(0, (2, 4))[:, 1:].unsqueeze(0)
        assert torch.equal(getattr(moved, name), expected)
    first, second = box.chunk(2, -1)
    assert torch.equal(torch.cat([first.lower, second.lower], -1), box.lower)
    assert [each.shape for each in box] == [(3, 4), (3, 4)]
    assert len(box) == 2
    assert box.mT.shape == (2, 4, 3)


def test_torchs_functions_move_boxes_too():
    box = Box.around(torch.randn(2, 3), 0.5)
    assert torch.equal(torch.transpose(box, 0, 1).upper, box.upper.T)
    assert torch.equal(torch.unsqueeze(box, 0).lower, box.lower[None])


def test_a_function_without_a_rule_raises_and_names_itself():
    box = Box.around(ZERO, 1.0)
    with pytest.raises(NotImplementedError, match="verify: sin must be a function that has a rule"):
        torch.sin(box)
    with pytest.raises(NotImplementedError, match="gru"):
        nn.GRU(3, 4)(box.unsqueeze(0))
    with pytest.raises(AttributeError, match="there is no rule for 'cumprod'"):
        box.cumprod(0)


def test_a_rule_can_be_added():
    try:

        @verify.rule("atan")
        def atan(x: Box) -> Box:
            return Box(x.lower.atan(), x.upper.atan())

        box = Box.around(torch.randn(3), 0.5)
        assert torch.equal(torch.atan(box).upper, box.upper.atan())
        assert torch.equal(box.atan().lower, box.lower.atan())
    finally:
        of_boxes._RULES.pop("atan", None)


def test_what_a_box_says_of_itself():
    box = Box.around(torch.zeros(2, 3), 0.25)
    assert repr(box) == "Box(shape=(2, 3), torch.float32, radius at most 0.25)"
    assert box.holds(torch.full((2, 3), 0.25))
    assert not box.holds(torch.full((2, 3), 0.26))
    assert box.holds(torch.full((2, 3), 0.26), slack=0.02)
    assert Box.of(box) is box
    assert Box.spanning(torch.ones(1), torch.zeros(1)).holds(torch.full((1,), 0.5))
