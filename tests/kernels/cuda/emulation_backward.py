"""Runs forward and backward of a problem on the emulator, and holds the gradients against the definition's."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from dynattn.kernels.cuda import emulator, launch
from dynattn.kernels.cuda.driver import Device
from dynattn.kernels.cuda.emulator import Schedule
from dynattn.kernels.cuda.launch_backward import Launches, prepare_backward
from dynattn.methods.nm import choose
from dynattn.reference import pairs as reference
from tests.kernels.cuda import emulation
from tests.kernels.cuda.emulation import SCHEDULES, Problem

ROWS = "nm_backward_rows.cu"
GUARD = 64  # elements before and after each gradient that must stay as they are
FEW_BLOCKS = Device(0, "sm_80", 1, 163 * 1024)  # 2 blocks wanted: the keys of a head are hardly dealt out
MANY_BLOCKS = Device(0, "sm_80", 132, 163 * 1024)
HOPPER = Device(0, "sm_90a", 132, 227 * 1024)  # where the wgmma kernels run
HOPPER_FEW_BLOCKS = Device(0, "sm_90a", 1, 227 * 1024)


@dataclass(frozen=True)
class BackwardProblem:
    """A forward problem and what comes back to it."""

    forward: Problem
    grad_out: Tensor
    grad_logsumexp: Tensor
    mask_gradient: bool = False
    whole: bool = False  # let the forward kernel run too; else out and logsumexp are the definition's, to save time
    device: Device = MANY_BLOCKS


class Gradients(NamedTuple):
    """Gradients of query, key, value and, where asked for, the mask at its full shape."""

    query: Tensor
    key: Tensor
    value: Tensor
    mask: Tensor | None


class Result(NamedTuple):
    """What forward and backward kernels wrote."""

    out: Tensor
    logsumexp: Tensor
    gradients: Gradients
    launches: Launches
    counts: emulator.Counts  # of the main kernel


def backward_problem(q_len: int, kv_len: int, head_dim: int = 64, **fields) -> BackwardProblem:
    """As :func:`emulation.simple`; the rest as :class:`BackwardProblem` has them."""
    own = {name: fields.pop(name) for name in ("mask_gradient", "device", "whole") if name in fields}
    forward = emulation.simple("mma2", q_len, kv_len, head_dim, **fields)
    return BackwardProblem(forward, *_incoming(forward, seed=5), **own)


def of(forward: Problem, **fields) -> BackwardProblem:
    """The backward of a forward problem, with gradients from a normal distribution."""
    return BackwardProblem(forward, *_incoming(forward, seed=5), **fields)


def _incoming(forward: Problem, seed: int) -> tuple[Tensor, Tensor]:
    shape = (*forward.query.shape[:3], forward.value.shape[3])
    return (
        emulation.normal(*shape, seed=seed, dtype=forward.query.dtype),
        emulation.normal(*shape[:3], seed=seed + 1, dtype=torch.float32),
    )


def run(problem: BackwardProblem, schedule: Schedule = SCHEDULES[0], sources: Path = emulator.SOURCES) -> Result:
    """The kernels' answer. Gradients hold NaN before they run, and what lies around them must not change."""
    p = problem.forward
    out, logsumexp = run_forward(problem) if problem.whole else _defined_forward(p)
    shapes = {"query": p.query, "key": p.key, "value": p.value}
    if problem.mask_gradient:
        shapes["mask"] = torch.empty(*p.query.shape[:3], p.key.shape[2])
    buffers = {
        name: torch.full((GUARD + like.numel() + GUARD,), math.nan, dtype=like.dtype) for name, like in shapes.items()
    }
    inside = {name: buffer[GUARD : buffer.numel() - GUARD] for name, buffer in buffers.items()}
    for name, like in shapes.items():
        batch, heads, length, columns = like.shape
        rows_together = name == "mask"  # the others lie as (batch, length, heads, columns)
        order = (batch, heads, length, columns) if rows_together else (batch, length, heads, columns)
        inside[name] = inside[name].view(order) if rows_together else inside[name].view(order).transpose(1, 2)
    gradients = Gradients(inside["query"], inside["key"], inside["value"], inside.get("mask"))
    launches = prepare_backward(
        problem.grad_out, problem.grad_logsumexp, p.query, p.key, p.value, p.mask, out, logsumexp,
        pattern=p.pattern, d_query=gradients.query, d_key=gradients.key, d_value=gradients.value,
        d_mask=gradients.mask, device=problem.device, seed=p.seed,
    )  # fmt: skip
    assert launches.main.variant.kernel == {"mma": "backward", "wgmma": "backward_wgmma"}[kernel_of(problem)]
    row_sums(launches).fill_(math.nan)
    sums, *others = launches
    if is_rough(logsumexp).any():  # elsewhere it writes nothing, and need not be compiled
        emulator.run(sums, schedule)
    _, counts, _ = (emulator.run(one, schedule, _folder(one.variant.source, sources)) for one in others)
    for name, buffer in buffers.items():
        assert buffer[:GUARD].isnan().all(), f"{name} overrun"
        assert buffer[buffer.numel() - GUARD :].isnan().all(), f"{name} overrun"
    return Result(out, logsumexp, gradients, launches, counts)


def row_sums(launches: Launches) -> Tensor:
    """What the first launch writes, (batch, heads, q_len, 2)."""
    written = launches.sums.tensors[-1]
    assert written is not None
    return written


def is_rough(logsumexp: Tensor) -> Tensor:
    """Rows whose logsumexp does not tell enough."""
    return (logsumexp.abs() > 1024) & logsumexp.isfinite()


def kernel_of(problem: BackwardProblem) -> str:
    """That runs forward and backward."""
    return "wgmma" if problem.device.arch == "sm_90a" else "mma"


def _folder(source: str, sources: Path) -> Path:
    """``sources`` where they change something for a kernel, else the originals, which are compiled already."""
    main_changed = (sources / ROWS).read_text() == (emulator.SOURCES / ROWS).read_text()
    return sources if main_changed == (source != ROWS) else emulator.SOURCES


def run_forward(problem: BackwardProblem) -> tuple[Tensor, Tensor]:
    """``out`` and ``logsumexp`` of the kernel that the backward belongs to."""
    p = problem.forward
    out = torch.full((*p.query.shape[:3], p.value.shape[3]), math.nan, dtype=p.query.dtype)
    logsumexp = torch.full(p.query.shape[:3], math.nan)
    prepared = launch.prepare(
        p.query, p.key, p.value, p.mask, out, logsumexp, None, None, None, p.pattern, problem.device,
        for_backward=True, seed=p.seed,
    )  # fmt: skip
    assert prepared.variant.kernel == kernel_of(problem)
    emulator.run(prepared)
    return out, logsumexp


def _defined_forward(p: Problem) -> tuple[Tensor, Tensor]:
    forward = reference.forward(p.query, p.key, p.value, p.method, p.mask, p.causal, p.scale, drops=p.drops)
    return forward.out, forward.logsumexp


def expected(problem: BackwardProblem) -> reference.Gradients:
    """The definition, in float64 from the very inputs."""
    p = problem.forward
    mask = p.mask if p.mask is None or p.mask.dtype == torch.bool else p.mask.double()
    return reference.backward(
        problem.grad_out.double(), problem.grad_logsumexp.double(), p.query.double(), p.key.double(), p.value.double(),
        p.method, mask, p.causal, p.scale, drops=p.drops,
    )  # fmt: skip


def plain(problem: BackwardProblem, out: Tensor) -> reference.Gradients:
    """The same computation by plain PyTorch: P and dS rounded to the element type, sums in float32, D from ``out``."""
    p = problem.forward
    offset, heads, kv_heads = p.key.shape[2] - p.query.shape[2], p.query.shape[1], p.key.shape[1]
    s = reference.scores(p.query, p.key, p.mask, p.causal, p.scale, offset)
    kept = choose(s, p.method, offset)
    weights = s.masked_fill(~kept, -math.inf).softmax(-1).where(kept, 0.0)
    repeat = lambda x: x.float().repeat_interleave(heads // kv_heads, 1)  # noqa: E731
    q, k, v, d_out = p.query.float(), repeat(p.key), repeat(p.value), problem.grad_out.float()
    row = (d_out * out.float()).sum(-1) - problem.grad_logsumexp
    drops = 1.0 if p.drops is None else p.drops
    d_scores = (weights * (drops * (d_out @ v.mT) - row.unsqueeze(-1))).where(kept, 0.0)
    dtype = p.query.dtype
    rounded = d_scores.to(dtype).float()
    group = lambda x: x.unflatten(1, (kv_heads, heads // kv_heads)).sum(2).to(dtype)  # noqa: E731
    return reference.Gradients(
        (p.scale * (rounded @ k)).to(dtype),
        group(p.scale * (rounded.mT @ q)),
        group((weights * drops).to(dtype).float().mT @ d_out),
        d_scores,
    )


def check(problem: BackwardProblem, result: Result) -> None:
    """Raises AssertionError where a gradient is not the definition's."""
    right = expected(problem)
    approximate = plain(problem, result.out)
    wanted = right if problem.mask_gradient else right[:3]
    for name, got, want, near in zip(Gradients._fields, result.gradients, wanted, approximate, strict=False):
        assert got is not None
        if not got.numel():
            continue
        error, of_plain = ((x.double() - want).abs().max().item() for x in (got, near))
        rounding = torch.finfo(got.dtype).eps / 2 * want.abs().max().item()  # of the largest gradient
        assert error <= 2 * of_plain + rounding, f"d_{name} is off by {error:.2e}, plain PyTorch by {of_plain:.2e}"


def changed(problem: BackwardProblem, **fields) -> BackwardProblem:
    """The problem with other tensors or options in its forward."""
    return replace(problem, forward=replace(problem.forward, **fields))
