"""Heads that are left, of each sample and of the batch; projections that compute only those."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import pytest
import torch
from torch import nn

from dynattn.pruning.heads import Heads
from dynattn.pruning.layout import LayerParts

FIRST = torch.tensor([[True, False, True, True], [False, True, True, True]])


def test_heads_are_numbered_as_in_the_model() -> None:
    heads = Heads.keep(None, FIRST)
    assert heads.left.tolist() == [[0, 2, 3], [1, 2, 3]]
    assert heads.union.tolist() == [0, 1, 2, 3]
    later = Heads.keep(heads, torch.tensor([[False, True, True], [False, True, True]]))
    assert later.left.tolist() == [[2, 3], [2, 3]]
    assert later.union.tolist() == [2, 3]
    assert later.place.tolist() == [[0, 1], [0, 1]]


def test_each_sample_takes_its_own_heads_of_the_union_and_gives_zeros_for_the_others() -> None:
    heads = Heads.keep(None, FIRST)
    x = torch.randn(2, 4, 5, 3)  # of the union: all four
    own = heads.select(x)
    assert torch.equal(own[1], x[1, [1, 2, 3]])
    spread = heads.spread(own.transpose(1, 2)).transpose(1, 2)
    assert torch.equal(spread[0], x[0] * torch.tensor([1.0, 0, 1, 1]).view(4, 1, 1))
    same = Heads.keep(None, FIRST[:1].expand(2, 4))
    assert same.select(x[:, :3]).data_ptr() == x[:, :3].data_ptr()


@pytest.mark.parametrize("chosen", [[[True, False], [True, True]], [[False, False], [False, False]]])
def test_samples_keep_as_many_heads_and_at_least_one(chosen: list[list[bool]]) -> None:
    with pytest.raises(ValueError, match="pruning: every sample must keep as many heads, and at least one: got"):
        Heads.keep(None, torch.tensor(chosen))


def parts(**changes: nn.Module) -> LayerParts:
    modules: dict[str, Any] = {name: nn.Linear(8, 8) for name in ("query", "key", "value", "output")}
    return LayerParts(nn.Identity(), nn.Identity(), **modules | changes)


def test_projections_compute_the_heads_of_the_union_until_it_is_undone() -> None:
    layer = parts()
    x, kept = torch.randn(1, 3, 8), Heads.keep(None, torch.tensor([[False, True, False, True]]))
    whole = [module(x) for module in layer[2:]]
    current: list[Heads | None] = [None]
    columns = [2, 3, 6, 7]  # of heads 1 and 3, two each
    with ExitStack() as undo:
        Heads.cut(layer, 4, lambda: current[0], undo)
        assert all(torch.equal(module(x), out) for module, out in zip(layer[2:], whole, strict=True))
        current[0] = kept
        for module, out in zip(layer[2:5], whole[:3], strict=True):
            torch.testing.assert_close(module(x), out[..., columns])
        zeros = torch.zeros_like(x).index_copy_(-1, torch.tensor(columns), x[..., columns])
        torch.testing.assert_close(layer.output(x[..., columns]), nn.Linear.forward(layer.output, zeros))  # pyright: ignore[reportArgumentType]
    assert all(torch.equal(module(x), out) for module, out in zip(layer[2:], whole, strict=True))


def test_a_projection_that_cannot_be_cut_is_refused() -> None:
    with pytest.raises(ValueError, match=r"the key projection must be a plain torch.nn.Linear: it is a Identity"):
        Heads.cut(parts(key=nn.Identity()), 4, lambda: None, ExitStack())
