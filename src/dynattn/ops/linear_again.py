"""Calls of the kernels of linear layers that are repeated: an earlier call has settled their checks and arguments.

A product of one token takes a few microseconds, and all that Python finds out about it depends only on shapes, strides
and options. So that is kept, a plan, under those as its key, as :mod:`dynattn.backends.again` does for attention. No
tensor is ever kept, and never more than ``_MOST`` plans. A call that is not plain has no key, and goes through the
operator. The answer is the same, since the same kernel gets the same arguments.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dynattn.kernels import cpu
from dynattn.kernels.cpu import linear_calls
from dynattn.kernels.cpu.linear_calls import CHOICE_MS, MAX_TOKENS
from dynattn.ops.library import unwatched

_DTYPES = (torch.float32, torch.bfloat16)
_MOST = 512
_CPU = torch.device("cpu")
_plans: dict[Hashable, Plan] = {}


class Plan(NamedTuple):
    """What a call needs besides its tensors.

    Attributes:
        function: the kernel's name.
        shape: the output's; the kernel knows its last dimension and the number of its rows.
        dtype: likewise.
        arguments: the arguments of the kernel, except for the addresses.
    """

    function: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    arguments: bytes

    def run(
        self, x: Tensor, weight: Tensor | None, bias: Tensor | None, keep: Tensor | None = None,
        thresholds: Tensor | None = None, factors: Tensor | None = None, scale: Tensor | None = None,
        places: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """Run the kernel, and return what it gives. All tensors but the weight are contiguous."""
        out = torch.empty(self.shape, dtype=self.dtype, device=_CPU)
        linear_calls.run(
            self.function, self.arguments, x, weight, bias, out, keep, thresholds, factors, scale, places
        )  # fmt: skip
        return out


def key_of(function: str, options: Hashable, *tensors: Any, constant: bool = False) -> Hashable | None:
    """The key under which the plan of a call is kept; None for a call that is not plain.

    Args:
        function: the kernel's name.
        options: whatever else the call depends on.
        tensors: what the call is given, not checked; None where an argument is left out.
        constant: whether the result has no derivative and the dtype of products does not matter to it, so that it may
            be computed where these are asked for.
    """
    if constant:
        plain = not (
            torch.compiler.is_compiling()
            or torch._C._len_torch_dispatch_stack()
            or torch._C._are_functorch_transforms_active()
            or torch._C._get_tracing_state() is not None
        )
    else:
        plain = unwatched() and not torch.is_autocast_enabled("cpu")
    if not plain:
        return None
    found: list[Any] = [function, options, torch.get_num_threads()]
    try:
        for x in tensors:
            if x is None:
                found.append(None)
                continue
            kind = type(x)
            if (kind is not Tensor and kind is not nn.Parameter) or not x.is_cpu or x.is_neg():
                return None
            if x.layout is not torch.strided:
                return None
            found.append((x.dtype, x.shape, x.stride()))
        if not constant and torch.is_grad_enabled() and torch._C._any_requires_grad(*tensors):
            return None
    except RuntimeError:  # nested tensors have no such thing
        return None
    return tuple(found)


def has_kernel(tokens: int, dtype: torch.dtype, inputs_kept: bool = True) -> bool:
    """Whether there is a kernel for so many tokens of a dtype: few of float32 and bfloat16; more of float32 where it is
    inputs that are kept.

    Args:
        tokens, dtype: those of the input.
        inputs_kept: whether it is inputs that are kept, and not outputs or weights.
    """
    if tokens <= MAX_TOKENS:
        return dtype in _DTYPES
    return inputs_kept and dtype == torch.float32


def plan(function: str, x: Tensor, weight: Tensor, thresholds: Tensor | None, n: int, m: int) -> Plan | None:
    """The plan of a call on the CPU, whose tensors but the weight must be contiguous; None where there is no kernel.

    Args:
        function: the kernel's name.
        x, weight, thresholds, n, m: as :mod:`dynattn.kernels.cpu.linear_calls` has them.
    """
    inputs_kept = function == "linear_rows"
    if (
        not has_kernel(x.shape[0], x.dtype, inputs_kept)
        or not cpu.is_available()
        or (x.shape[0] > MAX_TOKENS and weight.dtype != torch.float32)
        or (inputs_kept and m not in (0, *CHOICE_MS))
        or weight.stride(1) != 1
        or weight.stride(0) < weight.shape[1]
        or 0 in (*x.shape, *weight.shape)
    ):
        return None
    outputs = weight.shape[1 if inputs_kept else 0]
    arguments = linear_calls.prepare(x, weight, outputs, cpu.best_isa(), thresholds=thresholds, n=n, m=m)
    return Plan(function, (x.shape[0], outputs), x.dtype, arguments)


def plan_choice(x: Tensor, factors: Tensor | None, n: int, m: int) -> Plan | None:
    """The plan of a choice alone; None where there is no kernel for it.

    Args:
        x, factors, n, m: as :func:`dynattn.kernels.cpu.linear_calls.linear_choice` has them.
    """
    plain = x.is_contiguous() and (factors is None or factors.is_contiguous())
    if not plain or m not in CHOICE_MS or x.dtype not in _DTYPES or x.numel() == 0 or not cpu.is_available():
        return None
    tokens, inputs = x.shape
    arguments = linear_calls.prepare(x, x, inputs, cpu.best_isa(), n=n, m=m)
    return Plan("linear_choice", (tokens, inputs), torch.bool, arguments)


def find(key: Hashable) -> Plan | None:
    """The plan that is kept under ``key``, or None."""
    return _plans.get(key)


def remember(key: Hashable, plan: Plan) -> Plan:
    """Keep the plan of a call, and return it."""
    if len(_plans) >= _MOST:
        _plans.clear()
    _plans[key] = plan
    return plan
