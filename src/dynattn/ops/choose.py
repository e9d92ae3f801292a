"""Which backend runs: the fastest that computes the definition, or the one that was asked for by name.

Every backend computes the same function, so this choice never changes the answer, only the route.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple, cast

import torch

from dynattn.kernels import cpu, cuda
from dynattn.methods import NM, Method, MixingMethod, PairMethod, Threshold, TopK, Window

_KERNEL_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_FASTEST_FIRST = {"cpu": ("cpu", "blockwise", "sdpa"), "cuda": ("cuda", "blockwise", "sdpa")}
_ANYWHERE = ("blockwise", "sdpa")


class Problem(NamedTuple):
    """What the choice depends on."""

    device: torch.device
    dtype: torch.dtype
    method: Method
    masked: bool
    square_or_not_causal: bool
    aux: bool
    head_dim: int
    value_dim: int
    dropout: bool = False
    needs_grad: bool = False
    mask_by_query: bool = False  # a mask that is added, or that is not the same for all queries
    mask_needs_grad: bool = False

    @property
    def fastest_first(self) -> tuple[str, ...]:
        """Backends that ``auto`` tries on this device before the reference."""
        if self.device.type == "cuda" and self.method.keeps_everything:
            return ("sdpa", "cuda")  # which computes it as well, but with products twice over
        if self.method.keeps_everything and chooses_by_row(self.method):
            return ("sdpa", "cpu")  # which lists all pairs one by one
        return _FASTEST_FIRST.get(self.device.type, _ANYWHERE)


@dataclass(frozen=True)
class Plan:
    """Which backend runs, and why the ones before it do not; print it to read it.

    Attributes:
        backend: name of the backend, as ``dynattn.attention(..., backend=...)`` takes it.
        reason: what it is and why it was chosen.
        rejected: for each faster backend, why it cannot run here.
    """

    backend: str
    reason: str
    rejected: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [f"{self.backend}: {self.reason}"]
        return "\n".join(lines + [f"  not {name}: {reason}" for name, reason in self.rejected.items()])


def route(problem: Problem, backend: str) -> str:
    """Name of the backend that runs: the first of the list that can, or the one asked for.

    Args:
        problem: device, dtype, method and what else decides.
        backend: ``auto`` or the name of a backend.

    Raises:
        ValueError: no backend has this name.
        RuntimeError: the backend asked for cannot run this problem; the text says why.
    """
    if backend != "auto":
        _require(problem, backend)
        return backend
    return next((name for name in problem.fastest_first if _BACKENDS[name].cannot(problem) is None), "reference")


def explain_choice(problem: Problem, backend: str) -> Plan:
    """What :func:`route` answers, with the reasons.

    Args:
        problem, backend: as for :func:`route`.

    Raises:
        As :func:`route`.
    """
    chosen = route(problem, backend)
    what = _BACKENDS[chosen].what(problem)
    if backend != "auto":
        return Plan(chosen, f"{what}; asked for by name")
    first = problem.fastest_first
    passed_over = first[: first.index(chosen)] if chosen in first else first
    rejected = {name: _BACKENDS[name].cannot(problem) or "" for name in passed_over}
    return Plan(chosen, f"{what}; the fastest here that computes {problem.method.known_as}", rejected)


def backends() -> tuple[str, ...]:
    """Names that ``backend=`` takes besides ``auto``."""
    return tuple(_BACKENDS)


def _require(problem: Problem, backend: str) -> None:
    if backend not in _BACKENDS:
        raise ValueError(
            f"attention: backend must be 'auto' or one of {', '.join(map(repr, _BACKENDS))}: got {backend!r}"
        )
    reason = _BACKENDS[backend].cannot(problem)
    if reason is not None:
        raise RuntimeError(
            f"attention: backend {backend!r} cannot run this: {reason}; use backend='auto', "
            "and dynattn.explain(...) to see what it would run"
        )


class _Backend(NamedTuple):
    what: Callable[[Problem], str]
    cannot: Callable[[Problem], str | None]


def _no_kernel(method: Method) -> str:
    return f"its kernels compute N:M attention, and {method.known_as} is another method"


def _whole_blocks(method: Method) -> bool:
    return isinstance(method, PairMethod) and method.whole_blocks != 0


def chooses_by_row(method: Method) -> bool:
    """Whether ``method`` keeps pairs by the scores of their own row alone, as ``row_attention`` computes it."""
    return isinstance(method, (TopK, Threshold))


def _cpu_cannot(problem: Problem) -> str | None:
    blocks, by_row = _whole_blocks(problem.method), chooses_by_row(problem.method)
    if not blocks and not by_row and not isinstance(problem.method, NM):
        return (
            "its kernels compute N:M attention, top-k, thresholds and large blocks, and "
            f"{problem.method.known_as} is another method"
        )
    if blocks and problem.mask_by_query:
        return "pooled queries and keys choose blocks only under a mask that is bool and the same for all queries"
    if by_row and problem.mask_needs_grad:
        return "the gradient of a mask is not made where rows choose by their scores"
    if problem.device.type != "cpu":
        return f"tensors are on {problem.device}"
    if problem.dtype not in _KERNEL_DTYPES:
        return f"the kernels take float32, bfloat16 and float16, not {_short(problem.dtype)}"
    if torch.compiler.is_compiling():  # a tracer cannot look for the library; the operator does, when it runs
        return None
    return cpu.unavailable_reason()


def _isa_cannot(isa: str) -> Callable[[Problem], str | None]:
    def cannot(problem: Problem) -> str | None:
        reason = _cpu_cannot(problem)
        if reason is None and not torch.compiler.is_compiling() and not cpu.isa_available(isa):
            return f"this processor does not run {isa}"
        return reason

    return cannot


def _cuda_cannot(problem: Problem) -> str | None:
    if not isinstance(problem.method, NM):
        return _no_kernel(problem.method)
    if problem.device.type != "cuda":
        return f"tensors are on {problem.device}"
    cannot = cuda.cannot_backward if problem.needs_grad else cuda.cannot
    return cannot(problem.dtype, problem.method, problem.head_dim, problem.value_dim, problem.device)


def _cpu_what(problem: Problem, isa: str) -> str:
    what = f"fused C++ kernel ({isa})"
    if chooses_by_row(problem.method):
        return f"{what}, all pairs scored, values of the kept ones read"
    return what + (", dropped blocks skipped" if _whole_blocks(problem.method) else "")


def _cuda_what(problem: Problem) -> str:
    rounded = problem.dtype == torch.float32
    dense = problem.method.keeps_everything or (rounded and cast(NM, problem.method).m == 4)
    what = f"fused CUDA kernel on {'' if dense else 'sparse '}tensor cores"
    if problem.dropout:
        what += " (the one for sm_80, which alone draws dropout)"
    return f"{what}, float32 rounded to TF32" if rounded else what


def _blockwise_cannot(problem: Problem) -> str | None:
    if not isinstance(problem.method, Window):
        return f"it computes windows, and {problem.method.known_as} is another method"
    if problem.aux:
        return "the kept mass needs the scores of all pairs"
    if problem.dropout:
        return "it draws its dropout otherwise"
    return None


def _sdpa_cannot(problem: Problem) -> str | None:
    if not problem.method.keeps_everything:
        return f"it is dense, and {problem.method.known_as} is not"
    if problem.aux:
        return "it returns no logsumexp"
    if problem.dropout:
        return "it draws its dropout otherwise"
    if problem.masked:
        return "it gives NaN for rows that a mask empties"
    if not problem.square_or_not_causal:
        return "it aligns causal masks top-left where q_len != kv_len"
    return None


def _reference_what(problem: Problem) -> str:
    mixing = isinstance(problem.method, MixingMethod)
    return "plain PyTorch" if mixing else "plain PyTorch, a block of queries at a time"


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


_BACKENDS = {
    "cpu": _Backend(lambda problem: _cpu_what(problem, cpu.best_isa()), _cpu_cannot),
    **{f"cpu-{isa}": _Backend(partial(_cpu_what, isa=isa), _isa_cannot(isa)) for isa in ("avx512", "avx2", "portable")},
    "cuda": _Backend(_cuda_what, _cuda_cannot),
    "blockwise": _Backend(lambda _: "dense attention of blocks of queries to the keys near them", _blockwise_cannot),
    "sdpa": _Backend(lambda _: "torch.nn.functional.scaled_dot_product_attention", _sdpa_cannot),
    "reference": _Backend(_reference_what, lambda _: None),
}
