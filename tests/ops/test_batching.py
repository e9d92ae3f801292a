"""``vmap`` over attention gives what a loop gives, whatever is mapped, along which dimension, and with which mask."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.func import grad, vmap

import dynattn
from dynattn import NM

NAMES = ("query", "key", "value", "mask")


def inputs(mask: tuple[int, ...]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = ((2, 4, 5, 8), (2, 2, 7, 8), (2, 2, 7, 8), mask)
    return [torch.randn(3, *shape, generator=generator) for shape in shapes]


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    return dynattn.attention(query, key, value, NM(1, 2), attn_mask=mask)


@pytest.mark.parametrize(
    "mapped", [(0, 1, 2, 3), (0,), (1, 2), (3,)], ids=lambda which: "-".join(NAMES[i] for i in which)
)
@pytest.mark.parametrize("mask", [(2, 1, 1, 7), (1, 1, 5, 7), (2, 4, 5, 7), (5, 7), (7,)])
def test_outputs_and_gradients_of_the_mapped_calls(mask: tuple[int, ...], mapped: tuple[int, ...]) -> None:
    given = inputs(mask)
    in_dims = tuple(0 if i in mapped else None for i in range(4))
    passed = [x if i in mapped else x[0] for i, x in enumerate(given)]
    each = [[x[n] if i in mapped else x for i, x in enumerate(passed)] for n in range(3)]
    torch.testing.assert_close(vmap(attend, in_dims)(*passed), torch.stack([attend(*one) for one in each]))

    def loss(*tensors: Tensor) -> Tensor:
        return attend(*tensors).square().sum()

    found = vmap(grad(loss, argnums=(0, 1, 2, 3)), in_dims)(*passed)
    for i, gradient in enumerate(found):
        want = []
        for one in each:
            leaves = [x.detach().clone().requires_grad_() for x in one]
            want.append(torch.autograd.grad(loss(*leaves), leaves)[i])
        torch.testing.assert_close(gradient, torch.stack(want), msg=lambda text, i=i: f"{NAMES[i]}: {text}")


def test_the_mapped_dimension_may_stand_anywhere() -> None:
    query, key, value, mask = inputs((2, 1, 1, 7))
    want = vmap(attend)(query, key, value, mask)
    found = vmap(attend, in_dims=(4, 2, 1, 3), out_dims=2)(
        query.movedim(0, 4), key.movedim(0, 2), value.movedim(0, 1), mask.movedim(0, 3)
    )
    torch.testing.assert_close(found.movedim(2, 0), want)


def test_seeds_cannot_be_mapped() -> None:
    query, key, value, _ = inputs((7,))

    def drop(query: Tensor, seed: Tensor) -> Tensor:
        return dynattn.attention(query, key[0], value[0], NM(1, 2), dropout_p=0.5, seed=seed)

    with pytest.raises(ValueError, match=r"seed must not be mapped by vmap.*; pass one seed"):
        vmap(drop)(query, torch.arange(3))
