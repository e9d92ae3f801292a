"""Keys in the order of their clusters, against the definition by loops."""

from __future__ import annotations

import pytest
import torch

from dynattn.maths.clusters import ROUNDS, order


def by_loops(keys: list[list[float]], size: int) -> list[int]:
    count = -(-len(keys) // size)
    centres = [list(keys[(2 * c + 1) * len(keys) // (2 * count)]) for c in range(count)]

    def nearest(key: list[float]) -> int:
        distances = [sum((x - y) ** 2 for x, y in zip(key, centre, strict=True)) for centre in centres]
        return distances.index(min(distances))

    for _ in range(ROUNDS):
        members = [[key for key in keys if nearest(key) == c] for c in range(count)]
        centres = [
            [sum(column) / len(of) for column in zip(*of, strict=True)] if of else centre
            for of, centre in zip(members, centres, strict=True)
        ]
    found = [nearest(key) for key in keys]
    return sorted(range(len(keys)), key=lambda j: (found[j], j))


@pytest.mark.parametrize(("kv_len", "size"), [(1, 4), (13, 4), (40, 8), (40, 64), (33, 1)])
def test_the_order_by_loops(kv_len: int, size: int) -> None:
    key = torch.randn(2, 3, kv_len, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(kv_len))
    found = order(key, size)
    assert found.shape == (2, 3, kv_len)
    for keys, numbers in zip(key.flatten(0, 1).tolist(), found.flatten(0, 1).tolist(), strict=True):
        assert numbers == by_loops(keys, size)


def test_keys_alike_come_together() -> None:
    kinds = (torch.arange(32) + torch.arange(32) // 8) % 4  # the centres begin at keys of four kinds
    found = kinds[order(9 * torch.eye(4)[kinds][None, None], 8)[0, 0]]
    assert len(found.unique_consecutive()) == 4
    assert len(kinds.unique_consecutive()) > 8


def test_no_keys() -> None:
    assert order(torch.zeros(1, 2, 0, 4), 8).shape == (1, 2, 0)


def test_half_precision_is_computed_in_float32_without_a_gradient() -> None:
    key = torch.randn(1, 1, 50, 8).bfloat16().requires_grad_()
    assert torch.equal(order(key, 8), order(key.detach().float(), 8))
