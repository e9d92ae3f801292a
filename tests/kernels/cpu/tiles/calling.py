"""Runs a problem through a tile engine, poisoned outputs and all, and holds it against the definition."""

from __future__ import annotations

import ctypes
import math
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import NamedTuple
from unittest.mock import patch

import torch
from torch import Tensor

from dynattn.kernels import cpu
from dynattn.kernels.cpu import packing, runner
from dynattn.kernels.pattern import Pattern
from dynattn.maths import dropout
from dynattn.maths.scores import arithmetic_dtype
from dynattn.methods import NM
from dynattn.reference import pairs as reference


class Sums(Enum):
    """Which sums of weights a call asks for, and so which variant of the softmax runs."""

    ROUNDED = "rounded"  # for the output alone: the logsumexp is that of weights as rounded to bfloat16
    EXACT = "exact"  # as training asks for
    COUNTED = "counted"  # with the kept mass and the counts


@dataclass(frozen=True)
class Problem:
    """Inputs of one call, in bfloat16."""

    query: Tensor
    key: Tensor
    value: Tensor
    method: NM = NM(1, 2)
    mask: Tensor | None = None
    causal: bool = False
    scale: float = 0.25
    blocks: Tensor | None = None
    block_size: int = 0
    dropout_p: float = 0.0
    seed: int = 0
    options: dict = field(default_factory=dict)

    @property
    def rows(self) -> torch.Size:
        return self.query.shape[:3]


class Result(NamedTuple):
    out: Tensor
    logsumexp: Tensor
    kept_mass: Tensor
    kept: Tensor
    allowed: Tensor


def grid(
    heads: int, kv_heads: int, q_len: int, kv_len: int, head_dim: int, value_dim: int, *, batch: int = 1, seed: int = 0,
    **options: object,
) -> Problem:  # fmt: skip
    """Small integer queries and keys, whose products are exact: ties are many, the choice is certain."""
    generator = torch.Generator().manual_seed(seed)
    query = torch.randint(-2, 3, (batch, heads, q_len, head_dim), generator=generator).bfloat16()
    key = torch.randint(-2, 3, (batch, kv_heads, kv_len, head_dim), generator=generator).bfloat16()
    value = torch.randn(batch, kv_heads, kv_len, value_dim, generator=generator).bfloat16()
    return Problem(query, key, value, **options)  # type: ignore[arg-type]


def run(problem: Problem, engine: str | ctypes.CDLL, sums: Sums = Sums.COUNTED) -> Result:
    """One call, by an engine of the package or by a library that a test has compiled; outputs hold NaN before."""
    p = problem
    out = torch.full((*p.rows, p.value.shape[-1]), math.nan, dtype=p.query.dtype)
    logsumexp, kept_mass = torch.full(p.rows, math.nan), torch.full(p.rows, math.nan)
    kept, allowed = torch.full(p.rows, -1, dtype=torch.int32), torch.full(p.rows, -1, dtype=torch.int32)
    counts = (kept_mass, kept, allowed) if sums is Sums.COUNTED else (None, None, None)
    mask = None if p.mask is None else p.mask.expand(*p.rows, p.key.shape[2])
    isa = engine if isinstance(engine, str) else "tiles-portable"
    arguments = packing.forward_args(
        p.query, p.key, p.value, mask, out, pattern_of(problem), isa, logsumexp=logsumexp, counts=counts, seed=p.seed,
        needs_grad=sums is Sums.EXACT, blocks=p.blocks, block_size=p.block_size,
    )  # fmt: skip
    if isinstance(engine, str):
        runner.run("nm_forward", arguments)
    elif engine.dynattn_nm_forward(arguments) != 0:
        raise RuntimeError("the library that a test has compiled refuses the call")
    return Result(out, logsumexp, kept_mass, kept, allowed)


def run_backward(problem: Problem, engine: str | ctypes.CDLL) -> tuple[Tensor, reference.Gradients]:
    """The output of a forward and the gradients of :func:`grads_of`, that of the scores included."""
    p = problem
    forward = run(problem, engine, Sums.EXACT)
    grad_out, grad_logsumexp = grads_of(problem)
    d_query, d_key, d_value = (
        torch.full_like(x, math.nan, memory_format=torch.contiguous_format) for x in (p.query, p.key, p.value)
    )
    d_scores = torch.zeros(*p.rows, p.key.shape[2])
    mask = None if p.mask is None else p.mask.expand(*p.rows, p.key.shape[2])

    def run_in_library(_function: str, arguments: bytes) -> None:
        if engine.dynattn_nm_backward(arguments) != 0:  # type: ignore[union-attr]
            raise RuntimeError("the library that a test has compiled refuses the call")

    with nullcontext() if isinstance(engine, str) else patch.object(runner, "run", run_in_library):
        cpu.nm_backward(
            grad_out, grad_logsumexp, p.query, p.key, p.value, mask, forward.out, forward.logsumexp, d_query, d_key,
            d_value, d_scores, pattern_of(problem), engine if isinstance(engine, str) else "tiles-portable",
            seed=p.seed, blocks=p.blocks, block_size=p.block_size,
        )  # fmt: skip
    return forward.out, reference.Gradients(d_query, d_key, d_value, d_scores)


def grads_of(problem: Problem) -> tuple[Tensor, Tensor]:
    """Gradients of an output and of its logsumexp."""
    generator = torch.Generator().manual_seed(4)
    grad_out = torch.randn(*problem.rows, problem.value.shape[3], generator=generator).to(problem.query.dtype)
    return grad_out, torch.randn(problem.rows, generator=generator)


def pattern_of(problem: Problem) -> Pattern:
    """What the kernels are told of a problem's method."""
    return Pattern.of(problem.method, problem.causal, problem.scale)._replace(dropout_p=problem.dropout_p)


def drops_of(problem: Problem) -> Tensor | None:
    """The factors of dropout by the definition; None without dropout."""
    p = problem
    if not p.dropout_p:
        return None
    return dropout.factors(
        p.seed, p.dropout_p, p.query.shape[0], p.query.shape[1], range(p.query.shape[2]), p.key.shape[2], p.query.device
    )


def check_gradients(problem: Problem, engine: str | ctypes.CDLL, **changes: object) -> None:
    """Gradients against the reference in float64: error at most twice that of plain PyTorch, and a unit of bfloat16.

    The floor is that of the kernels in float32 for bfloat16 tensors: a unit of the last place of the largest gradient.
    """
    problem = replace(problem, **changes)  # type: ignore[arg-type]
    p, (grad_out, grad_logsumexp) = problem, grads_of(problem)
    got = run_backward(problem, engine)[1]
    exact, plain = (
        reference.backward(
            convert(grad_out), convert(grad_logsumexp), convert(p.query), convert(p.key), convert(p.value), p.method,
            _float_mask(problem), p.causal, p.scale, drops=drops_of(problem),
        )
        for convert in (Tensor.double, lambda x: x)
    )  # fmt: skip
    for name, mine, want, theirs in zip(exact._fields, got, exact, plain, strict=True):
        if want.numel() == 0:
            continue
        size = max(1.0, want.abs().max().item())
        allowed = 2 * error(theirs.to(p.query.dtype), want) + 2.0**-7 * size
        assert error(mine, want) <= allowed, f"gradient of {name}: {error(mine, want)}, allowed {allowed}"


def reference_of(problem: Problem, convert: type | object = Tensor.double) -> reference.ForwardResult:
    """The definition, in float64 or in what ``convert`` makes of the inputs."""
    p = problem
    query, key, value = (convert(x) for x in (p.query, p.key, p.value))  # type: ignore[operator]
    return reference.forward(
        query, key, value, p.method, _float_mask(p, query.dtype), p.causal, p.scale, drops=drops_of(p)
    )


def _float_mask(problem: Problem, dtype: torch.dtype = torch.bfloat16) -> Tensor | None:
    """:func:`whole_mask` in the dtype of the arithmetic: float32's lowest number is -inf in bfloat16."""
    mask = whole_mask(problem)
    return mask if mask is None or mask.dtype == torch.bool else mask.to(arithmetic_dtype(dtype))


def whole_mask(problem: Problem) -> Tensor | None:
    """The mask with what dropped blocks forbid."""
    p = problem
    if p.blocks is None:
        return p.mask
    q_len, kv_len = p.query.shape[2], p.key.shape[2]
    kept = p.blocks.repeat_interleave(p.block_size, 2)[:, :, :q_len].repeat_interleave(p.block_size, 3)[..., :kv_len]
    if p.mask is None:
        return kept
    return kept & p.mask if p.mask.dtype == torch.bool else p.mask.where(kept, -math.inf)


def check(problem: Problem, engine: str | ctypes.CDLL, **changes: object) -> None:
    """Every variant against the reference in float64: error at most twice that of plain PyTorch, and a floor.

    The floor of an output is half a unit of bfloat16's last place for its weights, of the largest value; that of a
    logsumexp likewise where only rounded weights are summed.
    """
    problem = replace(problem, **changes)  # type: ignore[arg-type]
    exact, plain = reference_of(problem), reference_of(problem, lambda x: x)
    size = max(problem.value.nan_to_num(0.0, 0.0, 0.0).abs().max().item() if problem.value.numel() else 0.0, 1.0)
    size /= 1 - problem.dropout_p
    for sums in Sums:
        got = run(problem, engine, sums)
        assert error(plain.out, exact.out) < 1e300, "plain PyTorch cannot say how large an error may be"
        assert error(got.out, exact.out) <= 2 * error(plain.out, exact.out) + size * 2.0**-8, sums
        floor = 2.0**-8 if sums is Sums.ROUNDED else 4e-6
        assert error(got.logsumexp, exact.logsumexp) <= 2 * error(plain.logsumexp, exact.logsumexp) + floor, sums
        if sums is Sums.COUNTED:
            assert error(got.kept_mass, exact.kept_mass) <= 2 * error(plain.kept_mass, exact.kept_mass) + 4e-6
            assert torch.equal(got.kept, exact.kept)
            assert torch.equal(got.allowed, exact.allowed)


def error(got: Tensor, want: Tensor) -> float:
    """Largest difference; infinity where one is not finite and the other differs."""
    got, want = got.double(), want.double()
    same = (got == want) | (got.isnan() & want.isnan())
    difference = (got - want).abs().masked_fill(same, 0.0).nan_to_num(math.inf)
    return difference.max().item() if difference.numel() else 0.0
