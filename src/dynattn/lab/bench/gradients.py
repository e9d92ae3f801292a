"""Makes one call of forward and backward, and checks that the gradients are right.

    error ≤ 2 · error of the definition in float32 + a few units in the last place of the largest gradient

Errors are taken against the definition in float64, for the first and the last key head, since heads do not depend on
one another.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from dynattn.lab.bench.cases import Workload
from dynattn.lab.bench.check import Check
from dynattn.methods.nm import NM
from dynattn.reference import pairs as reference

_UNITS = {torch.float32: 16, torch.bfloat16: 2, torch.float16: 2}  # sums round in float32, half types once more
_MAX_PAIRS = 1 << 24  # the most pairs of the heads that are compared; with more, float64 scores would not fit

Make = Callable[[Tensor, Tensor, Tensor], Callable[[], Tensor]]


def with_backward(make: Make) -> Callable[[Tensor, Tensor, Tensor], Callable[[], tuple[Tensor, ...]]]:
    """Turn a maker of forward calls into a maker of calls of forward and backward, which return the gradients."""

    def make_training(query: Tensor, key: Tensor, value: Tensor) -> Callable[[], tuple[Tensor, ...]]:
        inputs = tuple(x.detach().requires_grad_() for x in (query, key, value))
        grad_out = upstream(query)
        forward = make(*inputs)
        return lambda: torch.autograd.grad(forward(), inputs, grad_out)

    return make_training


def upstream(query: Tensor) -> Tensor:
    """The gradient of the output from which the backward starts; the same for all functions."""
    generator = torch.Generator(query.device).manual_seed(1)
    return torch.randn(query.shape, generator=generator, device=query.device).to(query.dtype)


def check_gradients(
    workload: Workload, query: Tensor, key: Tensor, value: Tensor, got: tuple[Tensor, ...], method: NM
) -> Check:
    """Compare gradients with those of the definition.

    Args:
        workload: the problem.
        query, key, value: its inputs.
        got: gradients of the three, from :func:`with_backward`.
        method: what was to be kept; ``NM(1, 1)`` for dense attention.

    Returns:
        The largest error relative to its own bound: at most 1 where all is right.
    """
    group = workload.heads // workload.kv_heads
    worst, rows = 0.0, 0
    for batch, head in {(0, 0), (workload.batch - 1, workload.kv_heads - 1)}:
        keys = (slice(batch, batch + 1), slice(head, head + 1))
        queries = (slice(batch, batch + 1), slice(head * group, (head + 1) * group))
        if group * workload.q_len * workload.kv_len > _MAX_PAIRS:
            raise ValueError(f"check_gradients: a head must have at most {_MAX_PAIRS} pairs: got {workload.label}")
        mine = (got[0][queries], got[1][keys], got[2][keys])
        tensors = (upstream(query)[queries], query[queries], key[keys], value[keys])
        exact, plain = (_definition(workload, method, [x.to(dtype) for x in tensors]) for dtype in _DTYPES)
        for gradient, want, other in zip(mine, exact, plain, strict=False):
            unit = torch.finfo(gradient.dtype).eps * want.abs().max().item()
            bound = 2 * (other.to(gradient.dtype) - want).abs().max().item() + _UNITS[gradient.dtype] * unit
            error = (gradient - want).abs().max().item()
            worst = max(worst, math.inf if math.isnan(error) else error / bound)
        rows += group * workload.q_len
    return Check(worst, 1.0, rows)


_DTYPES = (torch.float64, torch.float32)


def _definition(workload: Workload, method: NM, tensors: list[Tensor]) -> reference.Gradients:
    grad_out, query, key, value = tensors
    grad_logsumexp = grad_out.new_zeros(grad_out.shape[:3])
    return reference.backward(grad_out, grad_logsumexp, query, key, value, method, None, workload.causal)
