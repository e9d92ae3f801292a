"""The base class of backends, and what several of them share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from dynattn.backends.problem import Call, Problem, Result
from dynattn.kernels.pattern import BlockRule, Pattern, RowRule
from dynattn.methods.nm import NM
from dynattn.ops import transforms
from dynattn.ops.nm import nm_attention


class Choosing(NamedTuple):
    """A call of a kernel that makes a method's choice itself.

    Attributes:
        rule: what a row keeps, what a row of blocks keeps, or the margin of what maxima skip.
        pattern: dense: how to score.
        isa: the instruction set, as the kernels take it.
    """

    rule: RowRule | BlockRule | float
    pattern: Pattern
    isa: str


class Backend(ABC):
    """One way to compute attention. All backends compute the same, so that the choice among them is one of speed.

    Attributes:
        name: the name that ``dynattn.attention(..., backend=...)`` takes.
    """

    name: str

    @abstractmethod
    def cannot(self, problem: Problem) -> str | None:
        """Why it does not compute this problem, as half a sentence without a full stop; None where it does.

        While a function is compiled, a tracer cannot ask whether a library or a driver is there. It is then taken to be
        there, and the operator asks when it runs.
        """

    @abstractmethod
    def what(self, problem: Problem) -> str:
        """What the backend is, in words, for :func:`dynattn.explain`. Called only where it can compute the problem."""

    def kernel(self, call: Call) -> tuple[Pattern, str] | None:
        """The pattern and the instruction set by which the N:M kernels of CPUs compute a call of which only the output
        and the gradients are asked for, as its tensors lie; None where they do not, or not alone."""
        return None

    def choosing_kernel(self, call: Call) -> Choosing | None:
        """The same where the kernels of rows, blocks or skips make the choice themselves, and the output alone is asked
        for."""
        return None

    @abstractmethod
    def run(self, call: Call) -> Result:
        """Compute a call. Its problem is one that this backend can compute."""

    def settled(self, call: Call) -> Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor] | None:
        """What gives the output of calls that differ from ``call`` only in what their query, key, value and mask hold,
        none of which it keeps; None where :meth:`run` is no slower. Of such calls the output alone is asked for, and
        there is no dropout."""
        return None


def short(dtype: torch.dtype) -> str:
    """The name of a dtype without ``torch.``, as in ``float32``."""
    return str(dtype).removeprefix("torch.")


def run_nm(call: Call, backend: str) -> Result:
    """N:M attention by its operator, under ``torch.func`` too.

    Args:
        call: a call whose method is :class:`dynattn.NM`.
        backend: the name of the backend, as the operator takes it.
    """
    # under the compiler, vmap maps the operator by its own rule
    transformed = transforms.active() and not torch.compiler.is_compiling()
    operator = transforms.NMAttention.apply if transformed else nm_attention
    return Result(*operator(*nm_arguments(call, backend)))


def nm_arguments(call: Call, backend: str) -> tuple[Any, ...]:
    """The arguments of the N:M operator for a call whose method is :class:`dynattn.NM`."""
    query, key, value, attn_mask, seed, method, causal, scale, dropout_p, aux, needs_grad = call
    method = cast(NM, method)
    return (
        query, key, value, attn_mask, seed, method.n, method.m, method.window, method.sinks, method.stride, causal,
        scale, dropout_p, aux, needs_grad, backend,
    )  # fmt: skip
