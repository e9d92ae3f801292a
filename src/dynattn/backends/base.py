"""What a backend is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, cast

import torch

from dynattn.backends.problem import Call, Problem, Result
from dynattn.methods.nm import NM
from dynattn.ops import transforms
from dynattn.ops.nm import nm_attention


class Backend(ABC):
    """One way to compute attention. All of them compute the same, so that the choice among them is one of speed.

    Attributes:
        name: as ``dynattn.attention(..., backend=...)`` takes it.
    """

    name: str

    @abstractmethod
    def cannot(self, problem: Problem) -> str | None:
        """Why it does not compute this problem, half a sentence that ends with no full stop; None where it does.

        What a tracer cannot ask (a library, a driver) is taken to be there while a function is compiled; the operator
        asks when it runs.
        """

    @abstractmethod
    def what(self, problem: Problem) -> str:
        """What it is, for :func:`dynattn.explain`; asked where it can compute the problem."""

    @abstractmethod
    def run(self, call: Call) -> Result:
        """Compute a call that poses a problem that it can compute."""


def short(dtype: torch.dtype) -> str:
    """``float32`` of ``torch.float32``."""
    return str(dtype).removeprefix("torch.")


def run_nm(call: Call, backend: str) -> Result:
    """N:M attention by its operator, under ``torch.func`` too.

    Args:
        call: of a method that is :class:`dynattn.NM`.
        backend: the operator's.
    """
    # the compiler maps the operator itself
    transformed = transforms.active() and not torch.compiler.is_compiling()
    operator = transforms.NMAttention.apply if transformed else nm_attention
    return Result(*operator(*nm_arguments(call, backend)))


def nm_arguments(call: Call, backend: str) -> tuple[Any, ...]:
    """What the operator of N:M attention takes, of a call of a method that is :class:`dynattn.NM`."""
    query, key, value, attn_mask, seed, method, causal, scale, dropout_p, aux, needs_grad = call
    method = cast(NM, method)
    return (
        query, key, value, attn_mask, seed, method.n, method.m, method.window, method.sinks, method.stride, causal,
        scale, dropout_p, aux, needs_grad, backend,
    )  # fmt: skip
