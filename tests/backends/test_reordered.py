"""Keys in the order of their clusters, and then the kernels: the definition, masks, gradients and the route."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import dynattn
from dynattn import BlockTopK, Clustered
from dynattn.backends import backends

METHOD = Clustered(BlockTopK(0.3, 8, "sampled", window=0, sinks=0))


def inputs(dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = ((2, 4, 30, 8), (2, 2, 70, 8), (2, 2, 70, 5))
    query, key, value = (torch.randn(shape, generator=generator).to(dtype).requires_grad_() for shape in shapes)
    return query, key, value


def masks() -> dict[str, torch.Tensor | None]:
    generator = torch.Generator().manual_seed(1)
    return {
        "none": None,
        "padding": torch.arange(70) < torch.tensor([[70], [40]])[:, None, None],
        "by head": torch.rand(2, 4, 1, 70, generator=generator) < 0.7,
        "pairs": torch.rand(30, 70, generator=generator) < 0.7,
        "of queries": torch.rand(2, 1, 30, 1, generator=generator) < 0.7,
        "one number": torch.tensor(True),
        "added": torch.randn(70, generator=generator).double(),
    }


@pytest.mark.parametrize("kind", list(masks()))
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_it_computes_the_definition(kind: str, dtype: torch.dtype) -> None:
    found, mask = [], masks()[kind]
    if mask is not None and mask.is_floating_point():
        mask = mask.to(dtype)
    for backend in ("reordered", "reference"):
        tensors = inputs(dtype)
        out, aux = dynattn.attention(*tensors, METHOD, attn_mask=mask, scale=0.5, backend=backend, return_aux=True)
        loss = out.sin().sum() + aux.logsumexp.clamp(min=-1e3).square().sum() / 100
        found.append([out, *aux, *torch.autograd.grad(loss, tensors)])
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-4)


def test_routes() -> None:
    assert "reordered" in backends()
    tensors = inputs(torch.float32)
    plan = dynattn.explain(*tensors, METHOD)
    assert plan.backend == "reordered"
    assert plan.reason.startswith("keys in the order of their clusters, then ")
    refused: dict[str, dict[str, Any]] = {
        "a causal mask is one of pairs": {"causal": True}, "it draws other pairs for dropout": {"dropout_p": 0.1}
    }  # fmt: skip
    for reason, options in refused.items():
        plan = dynattn.explain(*tensors, METHOD, **options)
        assert plan.backend == "reference"
        assert reason in plan.rejected["reordered"]
    with pytest.raises(RuntimeError, match="it puts keys in order, and topk-3 leaves them as they are"):
        dynattn.attention(*tensors, dynattn.TopK(k=3), backend="reordered")
