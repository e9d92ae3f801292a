"""Short calls that are repeated: N:M attention on a CPU whose checks, route and arguments an earlier call has settled.

A call of one head of 64 tokens takes less time in arithmetic than in Python. All that Python finds out depends only on
shapes, strides and options. So the result, a plan, is kept under those as its key. No tensor is ever kept, and never
more than ``_MOST`` plans. A call that is not plain (a mask, dropout, gradients, autocast, a compiler, subclasses of
tensors) has no key, and goes the way of every other call. The answer is the same, since the same kernel gets the same
arguments.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from dynattn.backends.base import Backend
from dynattn.backends.cpu import CPU
from dynattn.backends.problem import Call
from dynattn.kernels import cpu
from dynattn.kernels.pattern import Pattern
from dynattn.methods.nm import NM
from dynattn.ops import buffers
from dynattn.ops.arguments import nm_isa
from dynattn.ops.library import unobserved

_MOST = 512
_plans: dict[Hashable, Prepared] = {}


class Prepared(NamedTuple):
    """What a call needs besides its tensors.

    Attributes:
        like_query: whether the output has the query's shape and is contiguous.
        arguments: the arguments of the kernel, except for the addresses.
    """

    like_query: bool
    arguments: bytes

    def run(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Run the kernel, and return the output."""
        out = torch.empty_like(query) if self.like_query else buffers.output(query, value)
        cpu.nm_forward_again(query, key, value, out, self.arguments)
        return out


def key_of(
    query: Any, key: Any, value: Any, method: Any, causal: Any, scale: Any, backend: Any, special: bool
) -> Hashable | None:
    """The key under which the plan of a call is kept; None for a call that is not plain.

    Args:
        query, key, value, method, causal, scale, backend: as :func:`dynattn.attention` is given them, not checked.
        special: whether any other argument was given.
    """
    if (
        special
        or type(method) is not NM
        or not unobserved(query, key, value)
        or (torch.is_grad_enabled() and (query.requires_grad or key.requires_grad or value.requires_grad))
        or torch.is_autocast_enabled("cpu")
        or type(causal) is not bool
        or (scale is not None and type(scale) is not float)
        or not (query.is_cpu and key.is_cpu and value.is_cpu)
    ):
        return None
    try:
        return (
            query.shape, key.shape, value.shape, query.stride(), key.stride(), value.stride(), query.dtype, key.dtype,
            value.dtype, method, causal, scale, backend, torch.get_num_threads(),
        )  # fmt: skip
    except RuntimeError:  # nested and compressed tensors have no such thing
        return None


def find(key: Hashable) -> Prepared | None:
    """The plan that is kept under ``key``, or None."""
    return _plans.get(key)


def remember(key: Hashable, chosen: Backend, call: Call) -> None:
    """Keep the plan of a call, if a CPU kernel runs it and needs no copies of its tensors."""
    query, value = call.query, call.value
    if not isinstance(chosen, CPU) or any(x.stride(-1) != 1 for x in call[:3]):
        return
    if len(_plans) >= _MOST:
        _plans.clear()
    pattern = Pattern.of(cast(NM, call.method), call.causal, call.scale)
    out, isa = buffers.output(query, value), nm_isa(chosen.name, query)
    arguments = cpu.prepare_nm_forward(query, call.key, value, out, pattern, isa)
    _plans[key] = Prepared(query.is_contiguous() and out.shape == query.shape, arguments)
