"""What is surely and possibly kept, against every corner of small boxes."""

# pyright: reportArgumentType=false, reportCallIssue=false, reportAttributeAccessIssue=false

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from dynattn.methods import Method, Rows, Threshold, parse
from dynattn.verify import Box
from dynattn.verify.choices import groups_of, kept


def scores(seed: int, radius: float, kv_len: int = 7) -> Box:
    """Of one head and two queries, small whole numbers, so that ends tie."""
    generator = torch.Generator().manual_seed(seed)
    center = torch.randint(-3, 4, (1, 1, 2, kv_len), generator=generator).double()
    return Box.around(center, radius * torch.randint(0, 3, center.shape, generator=generator).double())


def corners(box: Box) -> list[Tensor]:
    """Of each row: all combinations of ends, the same in both rows."""
    ends = torch.stack([box.lower, box.upper], -1)
    choices = torch.tensor(list(itertools.product((0, 1), repeat=box.shape[-1])))
    return [ends.gather(-1, choice.expand(box.shape).unsqueeze(-1)).squeeze(-1) for choice in choices]


def chosen(method: Method, s: Tensor, allowed: Tensor) -> Tensor:
    s = s.masked_fill(~allowed, -math.inf)
    none = torch.zeros(1, 1, 1, 1)
    return method.choose(s, Rows(none, none, s.shape[-1] - s.shape[-2], 1.0)) & allowed


@pytest.mark.parametrize(
    "name", ["nm-1-2", "nm-2-4", "nm-1-3-x2", "nm-1-4-w1-s1", "nm-2-3-s2", "topk-3", "window-2-s1"]
)
@pytest.mark.parametrize("radius", [0.0, 0.5, 1.0])
def test_surely_and_possibly_are_exact_and_weights_hold(name: str, radius: float):
    """Each row's choice is one of comparisons, and each comparison has its way at a corner."""
    method = parse(name)
    for seed in range(6):
        box = scores(seed, radius)
        allowed = torch.ones(box.shape, dtype=torch.bool)
        allowed[..., 1, 5] = seed % 2 == 0
        found = kept(box, allowed, groups_of(method, allowed, 5))
        choices, masses = [], []
        for s in corners(box):
            its = chosen(method, s, allowed)
            choices.append(its)
            weight = s.masked_fill(~its, -math.inf).softmax(-1)
            assert found.weight.holds(weight, 1e-12)
            masses.append((s.masked_fill(~allowed, -math.inf).softmax(-1) * its).sum(-1))
        every, some = torch.stack(choices).all(0), torch.stack(choices).any(0)
        assert not (found.surely & ~every).any()
        assert not (some & ~found.possibly).any()
        if "-w" not in name and "-s" not in name[3:]:
            assert torch.equal(found.surely, every)
            assert torch.equal(found.possibly, some)
        assert (torch.stack(masses).amin(0) >= found.kept_mass - 1e-12).all()
        if radius == 0:
            torch.testing.assert_close(found.kept_mass, masses[0])
            assert (found.settled == 1).all()


def test_weights_of_dense_attention_are_reached():
    """One number moves against all others, at a corner."""
    box = scores(0, 0.7)
    allowed = torch.ones(box.shape, dtype=torch.bool)
    found = kept(box, allowed, groups_of(parse("dense"), allowed, 5))
    weights = torch.stack([s.softmax(-1) for s in corners(box)])
    torch.testing.assert_close(weights.amin(0), found.weight.lower)
    torch.testing.assert_close(weights.amax(0), found.weight.upper)
    assert (found.kept_mass == 1).all()


def test_scores_far_apart_do_not_drown():
    """A key that lies 200 below another group's has a weight of e^-200 against it, and 1 alone."""
    s = torch.tensor([[[[0.0, -200.0, -200.0, -201.0]]]])
    allowed = torch.tensor([[[[False, True, True, True]]]])
    found = kept(Box.around(s, 0.1), allowed, groups_of(parse("nm-1-2"), allowed, 3))
    alone = s.masked_fill(~allowed, -math.inf).softmax(-1)
    assert found.weight.lower[..., 1] > 0.3
    assert found.weight.upper[..., 0] == 0
    assert found.weight.upper[..., 2] > alone[..., 2]


@pytest.mark.parametrize("name", ["dense", "nm-2-4", "nm-4-4", "topk-4"])
def test_one_wide_score_beside_exact_ones(name: str):
    """No sum is taken off another: beside e^80 the others would be nothing, and the least weight 1."""
    lower = torch.tensor([[[[0.1, 0.0, -1.0, 0.3]]]], dtype=torch.float64)
    upper = lower + torch.tensor([80.0, 0.0, 0.0, 0.0], dtype=torch.float64)
    allowed = torch.ones(lower.shape, dtype=torch.bool)
    method = parse(name)
    found = kept(Box(lower, upper), allowed, groups_of(method, allowed, 3))
    for share in (0.0, 0.01, 0.1, 1.0):
        s = lower + share * (upper - lower)
        weight = s.masked_fill(~chosen(method, s, allowed), -math.inf).softmax(-1)
        assert found.weight.holds(weight, 1e-12)


def test_rows_with_nothing_allowed():
    box = scores(0, 0.5)
    allowed = torch.zeros(box.shape, dtype=torch.bool)
    found = kept(box, allowed, groups_of(parse("nm-2-4"), allowed, 5))
    assert (found.weight.upper == 0).all()
    assert (found.kept_mass == 1).all()
    assert (found.settled == 1).all()
    assert not found.possibly.any()


def test_a_method_without_bounds_is_refused():
    allowed = torch.ones(1, 1, 2, 4, dtype=torch.bool)
    with pytest.raises(NotImplementedError, match=r"method must be NM, TopK or Window: got threshold-0\.1"):
        groups_of(Threshold(0.1), allowed, 2)
