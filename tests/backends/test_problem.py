"""The problem that a call poses: which masks differ from query to query, and whose gradient is asked for."""

from __future__ import annotations

import pytest
import torch

from dynattn import NM
from dynattn.backends.problem import Call

KEYS = torch.ones(2, 1, 1, 7, dtype=torch.bool)


def call(mask: torch.Tensor | None = None, dropout_p: float = 0.0, needs_grad: bool = False) -> Call:
    query, key, value = torch.zeros(2, 4, 5, 8), torch.zeros(2, 2, 7, 8), torch.zeros(2, 2, 7, 3)
    seed = torch.tensor(1) if dropout_p else None
    return Call(query, key, value, mask, seed, NM(1, 2), True, 0.5, dropout_p, False, needs_grad)


def test_sizes_come_from_the_tensor_that_has_them() -> None:
    found = call().problem
    assert (found.head_dim, found.value_dim, found.q_len, found.kv_len) == (8, 3, 5, 7)
    assert (found.masked, found.mask_by_query, found.dropout, found.sharded) == (False, False, False, False)
    assert call(dropout_p=0.1).problem.dropout


@pytest.mark.parametrize(
    ("mask", "by_query"),
    [
        (KEYS, False),
        (KEYS[0, 0, 0], False),  # (kv_len,)
        (KEYS.expand(2, 4, 1, 7), False),
        (torch.ones(5, 7, dtype=torch.bool), True),
        (KEYS.expand(2, 1, 5, 7), True),
        (torch.zeros(2, 1, 1, 7), True),  # added to the scores
    ],
)
def test_masks_that_differ_from_query_to_query(mask: torch.Tensor, by_query: bool) -> None:
    found = call(mask).problem
    assert found.masked
    assert found.mask_by_query == by_query
    assert not found.mask_needs_grad


@pytest.mark.parametrize("needs_grad", [False, True])
@pytest.mark.parametrize("requires_grad", [False, True])
def test_a_masks_gradient_is_asked_for_where_the_call_records_one(needs_grad: bool, requires_grad: bool) -> None:
    mask = torch.zeros(5, 7, requires_grad=requires_grad)
    assert call(mask, needs_grad=needs_grad).problem.mask_needs_grad == (needs_grad and requires_grad)
