"""``torch.ops.dynattn.nm_attention`` keeps torch.library's rules: schema, fake, autograd, AOT dispatch."""

import pytest
import torch

from dynattn.backends import backends
from dynattn.ops.nm import nm_attention
from tests.covering import half


def tensors(layout: str) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(2, 4, 9, 16), (2, 2, 13, 16), (2, 2, 13, 8)]
    drawn = [torch.randn(shape, generator=generator) for shape in shapes]
    if layout == "blhd":
        drawn = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in drawn]
    return [x.requires_grad_() for x in drawn]


@pytest.mark.parametrize(
    ("layout", "masked", "aux", "backend", "dropout_p"),
    half(["bhld", "blhd"], [False, True], [False, True], ["cpu", "reference"], [0.0, 0.4]),
)
def test_opcheck(layout: str, masked: bool, aux: bool, backend: str, dropout_p: float) -> None:
    seed = torch.tensor(3) if dropout_p else None
    mask = torch.zeros(2, 1, 1, 13, requires_grad=True) if masked else None
    torch.library.opcheck(
        nm_attention, (*tensors(layout), mask, seed, 2, 4, 3, 1, 2, True, 0.25, dropout_p, aux, True, backend)
    )


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_backward_operator_opcheck(backend: str) -> None:
    query, key, value = (x.detach() for x in tensors("bhld"))
    mask = torch.zeros(4, 9, 13)
    out, logsumexp, *_ = nm_attention(
        query, key, value, mask, None, 1, 2, 0, 0, 3, False, 0.25, 0.0, False, True, backend
    )  # fmt: skip
    for mask_needs_grad in (False, True):
        torch.library.opcheck(
            torch.ops.dynattn.nm_attention_backward.default,
            (torch.ones(2, 4, 9, 8), torch.ones(2, 4, 9), out, logsumexp, query, key, value, mask, None,
             1, 2, 0, 0, 3, False, 0.25, 0.0, mask_needs_grad, backend),
        )  # fmt: skip


def test_every_backend_gives_the_same_answer() -> None:
    query, key, value = (x.detach() for x in tensors("bhld"))
    expected = nm_attention(query, key, value, None, None, 2, 4, 0, 0, 1, False, 0.25, 0.0, True, False, "reference")
    ran = 0
    for backend in backends():
        if not backend.startswith("cpu"):
            continue
        try:
            got = nm_attention(query, key, value, None, None, 2, 4, 0, 0, 1, False, 0.25, 0.0, True, False, backend)
        except RuntimeError:
            continue  # an instruction set that this processor lacks
        ran += 1
        for a, b in zip(got, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    assert ran >= 1
