"""Chooses the backend that runs: the fastest that can compute the problem, or the one that was asked for by name.

A backend is one file with one class, which says why it cannot compute a problem, what it is, and how it runs a call. A
line in ``_BACKENDS`` adds it; a place in ``_fastest_first`` lets ``auto`` take it.
"""

from __future__ import annotations

import torch
from torch.autograd import forward_ad

from dynattn.backends.base import Backend
from dynattn.backends.blockwise import Blockwise
from dynattn.backends.cpu import CPU, Tiles
from dynattn.backends.cuda import CUDA
from dynattn.backends.problem import Call, Plan, Problem, Result
from dynattn.backends.reference import Reference
from dynattn.backends.reordered import Reordered
from dynattn.backends.sdpa import SDPA
from dynattn.methods.base import Choice
from dynattn.ops import transforms

__all__ = ["Backend", "Call", "Plan", "Problem", "Result", "backends", "explain", "route"]

# Tokens below which float32 is left to PyTorch: forward alone and in training, for heads of at most 64 dimensions in
# whole vectors of 16, and for others.
_FEW_TOKENS = 48
_TOKENS_WIDE, _TOKENS_TRAINING, _TOKENS_TRAINING_WIDE = 256, 256, 640
_NARROW_HEAD, _VECTOR = 64, 16
_ODD_HEADS = range(65, 81)
"""Five vectors, of which panels of two leave one: without a causal mask 0.79 to 0.98 of PyTorch's speed at any length
(``benchmarks/never_slower.py`` has 4 heads of 1024 tokens)."""


def route(problem: Problem, backend: str) -> Backend:
    """The backend that runs: the fastest that can compute the problem, or the one asked for.

    Args:
        problem: everything that the choice depends on.
        backend: ``auto`` or the name of a backend.

    Raises:
        ValueError: no backend has this name.
        RuntimeError: the backend asked for cannot run this problem; the text says why.
    """
    if backend == "auto":
        return _fastest(problem)
    if not isinstance(backend, str) or backend not in _BACKENDS:
        raise ValueError(
            f"attention: backend must be 'auto' or one of {', '.join(map(repr, _BACKENDS))}: got {backend!r}"
        )
    reason = _BACKENDS[backend].cannot(problem)
    if reason is not None:
        raise RuntimeError(
            f"attention: backend {backend!r} cannot run this: {reason}; use backend='auto', "
            "and dynattn.explain(...) to see what it would run"
        )
    return _BACKENDS[backend]


def explain(problem: Problem, backend: str) -> Plan:
    """What :func:`route` answers, with the reasons.

    Args:
        problem, backend: as for :func:`route`.

    Raises:
        As :func:`route`.
    """
    chosen = route(problem, backend)
    what = chosen.what(problem)
    if backend != "auto":
        return Plan(chosen.name, f"{what}; asked for by name")
    first = _fastest_first(problem)
    passed_over = first[: first.index(chosen.name)] if chosen.name in first else first
    rejected = {name: _BACKENDS[name].cannot(problem) or "" for name in passed_over}
    return Plan(chosen.name, f"{what}; the fastest here that computes {problem.method.known_as}", rejected)


def backends() -> tuple[str, ...]:
    """Names that ``backend=`` takes besides ``auto``."""
    return tuple(_BACKENDS)


def _fastest_first(problem: Problem) -> tuple[str, ...]:
    """The names of the backends that ``auto`` tries before the reference, in order."""
    method, device = problem.method, problem.device.type
    if device == "cuda":
        # dense attention by our kernel takes twice as many products as by sdpa, since it multiplies zeros as well
        return ("sdpa", "cuda") if method.keeps_everything else ("cuda", "blockwise", "reordered", "sdpa")
    if device == "cpu":
        if _is_short_and_dense(problem):
            return ("sdpa", "cpu")
        return ("cpu", "blockwise", "reordered", "sdpa")
    return ("blockwise", "reordered", "sdpa")


def _is_short_and_dense(problem: Problem) -> bool:
    """Whether PyTorch's attention takes less time than the dense CPU kernels, as measured on a Zen 4: in float32, where
    a call has few tokens, since a tile of the kernels holds 64 keys and a task of their backward 48 queries, or heads
    of an odd width."""
    if (
        problem.dtype != torch.float32
        or not problem.method.keeps_everything
        or problem.method.choice is not Choice.GROUPS
        or problem.causal
        or problem.grouped
        or torch.compiler.is_compiling()  # would compile for the lengths at hand alone
        or problem.q_len != problem.kv_len
        or problem.head_dim != problem.value_dim
        or transforms.active()
        or forward_ad._current_level >= 0  # PyTorch's attention would refuse dual numbers in its own words
    ):
        return False
    wide = problem.head_dim > _NARROW_HEAD
    untidy = wide or problem.head_dim % _VECTOR != 0
    if problem.needs_grad:
        return problem.q_len < (_TOKENS_TRAINING_WIDE if wide else _TOKENS_TRAINING)
    return problem.head_dim in _ODD_HEADS or problem.q_len < (_TOKENS_WIDE if untidy else _FEW_TOKENS)


def _fastest(problem: Problem) -> Backend:
    for name in _fastest_first(problem):
        if _BACKENDS[name].cannot(problem) is None:
            return _BACKENDS[name]
    return _BACKENDS["reference"]


_BACKENDS: dict[str, Backend] = {
    backend.name: backend
    for backend in (
        CPU(),
        CPU("avx512"),
        CPU("avx2"),
        CPU("neon"),
        CPU("portable"),
        Tiles("amx"),
        Tiles("avx512bf16"),
        Tiles("tiles-portable"),
        CUDA(),
        Blockwise(_fastest),
        Reordered(_fastest),
        SDPA(),
        Reference(),
    )
}
