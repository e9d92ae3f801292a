"""The most important tokens: leading ones first, ties to the lower place, and never one that is not there."""

from __future__ import annotations

import torch

from dynattn.pruning.course import Course, Decision, Seen, highest, top


def seen(alive: list[list[bool]], leading: list[list[bool]]) -> Seen:
    there = torch.tensor(alive)
    position = torch.arange(there.shape[1]).expand_as(there)
    return Seen(0, torch.zeros(*there.shape, 2), there, torch.tensor(leading), position)


def test_leading_tokens_come_first_and_padding_never() -> None:
    what = seen(
        [[True] * 5, [True, True, True, False, False]], [[False, False, False, False, True], [True] + [False] * 4]
    )
    importance = torch.tensor([[5.0, 4, 3, 2, 1], [0.0, 1, 2, 9, 9]])
    found = top(importance, what, torch.tensor([3, 2]))
    assert found.tolist() == [[True, True, False, False, True], [True, False, True, False, False]]
    assert top(importance, what, torch.tensor([9, 9])).tolist() == what.alive.tolist()


def test_ties_go_to_the_lower_place_and_none_may_be_asked_for() -> None:
    values = torch.tensor([[1.0, 2, 2, 2, 0], [1.0, 1, 1, 1, 1]])
    allowed = torch.tensor([True, True, False, True, True])
    assert highest(values, allowed, torch.tensor(2)).tolist() == [
        [False, True, False, True, False],
        [True, True, False, False, False],
    ]
    assert not highest(values, allowed, torch.tensor(0)).any()


def test_a_course_by_itself_keeps_everything() -> None:
    full = torch.randn(1, 3, 2)
    assert Course().after(seen([[True]], [[False]])) == Decision()
    assert Course().finish(full) is full
    assert Course().notes() == {}
