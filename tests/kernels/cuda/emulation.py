"""Runs a problem through a kernel on the emulator, poisoned outputs and all, and holds it against the definition."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from dynattn import NM
from dynattn.kernels.cuda import emulator, launch
from dynattn.kernels.cuda.driver import Device
from dynattn.kernels.cuda.emulator import Schedule
from dynattn.kernels.pattern import Pattern
from dynattn.maths import dropout
from dynattn.methods.nm import choose
from dynattn.reference import pairs as reference

SCHEDULES = [Schedule(reversed, eager) for reversed in (False, True) for eager in (False, True)]
GUARD = 64  # elements before and after each output that must stay as they are


@dataclass(frozen=True)
class Problem:
    """Inputs of one attention call. ``kernel`` is ``mma1``, ``mma2`` (row tiles) or ``wgmma``."""

    query: Tensor
    key: Tensor
    value: Tensor
    method: NM = NM(1, 2)
    mask: Tensor | None = None
    causal: bool = False
    scale: float = 0.125
    aux: bool = False
    kernel: str = "mma2"
    dropout_p: float = 0.0
    dropout_seed: int = -(3 << 40) - 5  # both of its words matter

    @property
    def pattern(self) -> Pattern:
        return Pattern.of(self.method, self.causal, self.scale)._replace(dropout_p=self.dropout_p)

    @property
    def seed(self) -> Tensor | None:
        return torch.tensor(self.dropout_seed) if self.dropout_p else None

    @property
    def drops(self) -> Tensor | None:
        """Factors of dropout, (batch, heads, q_len, kv_len)."""
        batch, heads, q_len, _ = self.query.shape
        if not self.dropout_p:
            return None
        rows, kv_len = range(q_len), self.key.shape[2]
        return dropout.factors(self.dropout_seed, self.dropout_p, batch, heads, rows, kv_len, self.query.device)


class Result(NamedTuple):
    """What the kernel wrote."""

    out: Tensor
    logsumexp: Tensor
    kept_mass: Tensor | None
    kept: Tensor | None
    allowed: Tensor | None
    counts: emulator.Counts
    launch: launch.Launch


def device(kernel: str) -> Device:
    """A device for which :func:`dynattn.kernels.cuda.launch.prepare` takes this kernel."""
    if kernel == "wgmma":
        return Device(0, "sm_90a", 132, 227 * 1024)
    return Device(0, "sm_80", 0 if kernel == "mma2" else 1 << 20, 163 * 1024)


def grid(*shape: int, seed: int, dtype: torch.dtype, spread: int = 3) -> Tensor:
    """Small integers: products and sums of them are exact in every arithmetic, and many scores are equal."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-spread, spread + 1, shape, generator=generator).to(dtype)


def normal(*shape: int, seed: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def bias(*shape: int, seed: int, dtype: torch.dtype) -> Tensor:
    """Small integers, and -inf at some places."""
    forbidden = torch.rand(*shape, generator=torch.Generator().manual_seed(seed + 1)) < 0.2
    return grid(*shape, seed=seed, dtype=dtype).masked_fill(forbidden, -math.inf)


def allowed(*shape: int, seed: int, share: float = 0.5) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) < share


def padding(batch: int, kv_len: int) -> Tensor:
    """A key-padding mask (batch, 1, 1, kv_len) whose last sequence has nothing at all."""
    lengths = torch.linspace(kv_len, 0, batch).int().view(batch, 1, 1, 1)
    return torch.arange(kv_len).view(1, 1, 1, kv_len) < lengths


def with_large_scores(problem: Problem) -> Problem:
    """Every seventh row's scores are about 10^9 or -10^9, all but a few of them equal; they are exact all the same.

    In such a row's logsumexp nothing is left of the logarithm of their number.
    """
    query, key = problem.query.clone(), problem.key.clone()
    query[..., 0], query[:, :, 3::7] = 0, 0
    for row in range(3, query.shape[2], 7):
        query[:, :, row, 0] = (-1) ** row * 32 * (1000 + 37 * (row % 25))
    key[..., 0], key[:, :, 2::23, 0] = 181 << 7, 182 << 7
    return replace(problem, query=query, key=key, scale=math.copysign(1.0, problem.scale))


def run(problem: Problem, schedule: Schedule = SCHEDULES[0], sources: Path = emulator.SOURCES) -> Result:
    """The kernel's answer. Outputs hold NaN before it runs, and what lies around them must not change."""
    p = problem
    rows = p.query.shape[:3]
    shape = (*rows, p.value.shape[3])
    buffers = {
        "out": torch.full((GUARD + math.prod(shape) + GUARD,), math.nan, dtype=p.query.dtype),
        **{
            name: torch.full((GUARD + math.prod(rows) + GUARD,), poison, dtype=dtype)
            for name, dtype, poison in (
                ("logsumexp", torch.float32, math.nan), ("kept_mass", torch.float32, math.nan),
                ("kept", torch.int32, -7), ("allowed", torch.int32, -7),
            )
        },
    }  # fmt: skip
    before = {name: buffer.clone() for name, buffer in buffers.items()}
    inside = {
        name: buffer[GUARD : buffer.numel() - GUARD].view(shape if name == "out" else rows)
        for name, buffer in buffers.items()
    }
    asked = inside if p.aux else {**inside, "kept_mass": None, "kept": None, "allowed": None}
    prepared = launch.prepare(
        p.query, p.key, p.value, p.mask, asked["out"], asked["logsumexp"],
        asked["kept_mass"], asked["kept"], asked["allowed"],
        p.pattern, device(p.kernel), seed=p.seed,
    )  # fmt: skip
    assert prepared.variant.kernel == p.kernel.rstrip("12"), prepared.variant
    counts = emulator.run(prepared, schedule, sources)
    for name, buffer in buffers.items():
        around = [slice(0, GUARD), slice(buffer.numel() - GUARD, None)] if asked[name] is not None else [slice(None)]
        for part in around:
            assert torch.equal(buffer[part].nan_to_num(5), before[name][part].nan_to_num(5)), f"{name} overrun"
    return Result(
        inside["out"], inside["logsumexp"], asked["kept_mass"], asked["kept"], asked["allowed"], counts, prepared
    )  # fmt: skip


def expected(problem: Problem) -> reference.ForwardResult:
    """The definition, in float64 from the very inputs."""
    p = problem
    mask = p.mask if p.mask is None or p.mask.dtype == torch.bool else p.mask.double()
    return reference.forward(
        p.query.double(), p.key.double(), p.value.double(), p.method, mask, p.causal, p.scale, drops=p.drops
    )  # fmt: skip


def tf32(x: Tensor) -> Tensor:
    """float32 rounded to TF32, 10 bits of mantissa, ties away from 0."""
    return ((x.contiguous().view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)


def plain(problem: Problem) -> Tensor:
    """The same computation in the element type by plain PyTorch: operands rounded to it, sums in float32."""
    p = problem
    rounded = tf32 if p.query.dtype == torch.float32 else lambda x: x.to(p.query.dtype).float()
    s = reference.scores(rounded(p.query), rounded(p.key), p.mask, p.causal, p.scale, p.key.shape[2] - p.query.shape[2])
    kept = choose(s, p.method, p.key.shape[2] - p.query.shape[2])
    s = s.masked_fill(~kept, -math.inf)
    top = s.amax(-1, keepdim=True).clamp(min=torch.finfo(torch.float32).min)
    weights = (s - top).exp()
    value = rounded(p.value.where(p.value.isfinite(), 0.0))  # under a mask: the kernels must not see them
    value = value.repeat_interleave(p.query.shape[1] // p.value.shape[1], 1)
    drops = 1.0 if p.drops is None else p.drops
    out = (rounded(weights) * drops) @ value / weights.sum(-1, keepdim=True).clamp(min=1e-30)
    return out.to(p.query.dtype)


def check(problem: Problem, result: Result) -> None:
    """Raises AssertionError where the kernel's answer is not the definition's."""
    right = expected(problem)
    dead = right.logsumexp == -math.inf
    assert (result.out[dead] == 0).all(), "an empty row must be 0"
    assert (result.logsumexp[dead] == -math.inf).all(), "an empty row must have logsumexp -inf"
    if not dead.all():
        error, of_plain = ((x.double() - right.out).abs().max().item() for x in (result.out, plain(problem)))
        rounding = torch.finfo(result.out.dtype).eps / 2 * right.out.abs().max().item()  # of the largest output
        assert error <= 2 * of_plain + rounding, f"out is off by {error:.2e}, plain PyTorch by {of_plain:.2e}"
        torch.testing.assert_close(result.logsumexp[~dead].double(), right.logsumexp[~dead], rtol=2e-6, atol=2e-6)
    if problem.aux:
        assert result.kept_mass is not None
        assert result.kept is not None
        assert result.allowed is not None
        torch.testing.assert_close(result.kept_mass.double(), right.kept_mass, rtol=1e-5, atol=1e-5)
        assert torch.equal(result.kept, right.kept), "kept pairs"
        assert torch.equal(result.allowed, right.allowed), "allowed pairs"


def simple(
    kernel: str, q_len: int, kv_len: int, head_dim: int = 64, heads: int = 1, kv_heads: int = 1, **fields
) -> Problem:
    """A problem with small integers for queries and keys, so that the choice is exact, ties included."""
    dtype = fields.pop("dtype", torch.bfloat16)
    value_dim = fields.pop("value_dim", head_dim)
    batch, seed = fields.pop("batch", 1), fields.pop("seed", 0)
    return replace(
        Problem(
            grid(batch, heads, q_len, head_dim, seed=seed, dtype=dtype),
            grid(batch, kv_heads, kv_len, head_dim, seed=seed + 1, dtype=dtype),
            normal(batch, kv_heads, kv_len, value_dim, seed=seed + 2, dtype=dtype),
            kernel=kernel,
        ),
        **fields,
    )
