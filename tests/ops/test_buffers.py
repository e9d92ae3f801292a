"""Inputs may lie in memory in any way: gradients are those of copies that are contiguous."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import dynattn
from dynattn.methods import parse
from dynattn.ops import buffers
from tests.methods.every import NAMES

LENGTH, DIM = 9, 24


def numbers(*shape: int) -> Tensor:
    """Whole numbers, so that scores are exact and equal ones tie however they are summed."""
    return torch.randint(-2, 3, shape, generator=torch.Generator().manual_seed(sum(shape))).float()


LAYOUTS: dict[str, Callable[[], Tensor]] = {
    "unfolded, neighbours share elements": lambda: numbers(2, 4, LENGTH + DIM - 1).unfold(-1, DIM, 1),
    "unfolded by rows": lambda: numbers(2, 4, DIM + LENGTH - 1).unfold(-1, LENGTH, 1).mT,
    "one row for all": lambda: numbers(2, 4, 1, DIM).expand(2, 4, LENGTH, DIM),
    "one head for all": lambda: numbers(2, 1, LENGTH, DIM).expand(2, 4, LENGTH, DIM),
    "one sample for all": lambda: numbers(1, 4, LENGTH, DIM).expand(2, 4, LENGTH, DIM),
    "one element for all of a row": lambda: numbers(2, 4, LENGTH, 1).expand(2, 4, LENGTH, DIM),
    "one element": lambda: numbers(1).expand(2, 4, LENGTH, DIM),
    "rows apart": lambda: numbers(2, 4, LENGTH, 3 * DIM)[..., DIM : 2 * DIM],
    "heads last": lambda: numbers(2, LENGTH, DIM, 4).permute(0, 3, 1, 2),
    "lengths first": lambda: numbers(LENGTH, 4, 2, DIM).permute(2, 1, 0, 3),
    "backwards in the batch": lambda: numbers(4, LENGTH, 2, DIM).permute(2, 0, 1, 3),
    "heads overlap": lambda: numbers(2, 7, 2, DIM).as_strided((2, 4, LENGTH, DIM), (4 * DIM, 2, DIM // 2, 1)),
}


def gradients(method: str, inputs: dict[str, Tensor], incoming: Tensor, **options) -> dict[str, Tensor]:
    leaves = {name: x.detach().requires_grad_() for name, x in inputs.items()}
    out = dynattn.attention(leaves["query"], leaves["key"], leaves["value"], parse(method),
                            attn_mask=leaves.get("mask"), **options)  # fmt: skip
    return dict(zip(leaves, torch.autograd.grad(out, list(leaves.values()), incoming), strict=True))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("method", NAMES)
def test_gradients_are_those_of_contiguous_copies(method: str, layout: str) -> None:
    inputs = {name: LAYOUTS[layout]() for name in ("query", "key", "value")}
    incoming = LAYOUTS[layout]()
    want = gradients(method, {name: x.contiguous() for name, x in inputs.items()}, incoming.contiguous())
    for name in inputs:
        mixed = {other: x if other == name else x.contiguous() for other, x in inputs.items()}
        torch.testing.assert_close(gradients(method, mixed, incoming.contiguous()), want, rtol=1e-4, atol=3e-5)
    torch.testing.assert_close(gradients(method, inputs, incoming), want, rtol=1e-4, atol=3e-5)


@pytest.mark.parametrize(
    "mask",
    [
        numbers(2, 4, 1, LENGTH).expand(2, 4, LENGTH, LENGTH),
        numbers(1, 1, LENGTH, 1).expand(2, 4, LENGTH, LENGTH),
        numbers(1).expand(LENGTH, LENGTH),
        numbers(2, 4, 2 * LENGTH - 1).unfold(-1, LENGTH, 1),
    ],
    ids=["rows", "columns", "one element", "unfolded"],
)
@pytest.mark.parametrize("method", [name for name in NAMES if "efficient" not in name and "scatter" not in name])
def test_the_same_for_masks(method: str, mask: Tensor) -> None:
    inputs = {name: numbers(2, 4, LENGTH, DIM) for name in ("query", "key", "value")} | {"mask": mask}
    incoming = numbers(2, 4, LENGTH, DIM)
    want = gradients(method, inputs | {"mask": mask.contiguous()}, incoming, causal=True)
    torch.testing.assert_close(gradients(method, inputs, incoming, causal=True), want, rtol=1e-4, atol=3e-5)


@pytest.mark.parametrize("method", NAMES)
def test_an_output_may_be_changed_in_place_later(method: str) -> None:
    """Which PyTorch forbids to views that were made while no gradient was recorded."""
    query, key, value = (numbers(2, LENGTH, 4, DIM).transpose(1, 2) for _ in range(3))
    bias = torch.ones(DIM, requires_grad=True)
    for _ in range(2):
        with torch.no_grad():
            out = dynattn.attention(query, key, value, parse(method))
        out += bias
    assert torch.equal(torch.autograd.grad(out.sum(), bias)[0], torch.full_like(bias, 2 * 4 * LENGTH))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_buffers_have_contiguous_rows_and_share_no_element(layout: str) -> None:
    x = LAYOUTS[layout]()
    for buffer in (*buffers.gradients(x, x, x, x, True), *buffers.outputs(x, x[..., :3], True)):
        assert not buffer._is_view()
        assert buffer.stride(-1) == 1
        assert torch.ops.aten.is_non_overlapping_and_dense(buffer)
