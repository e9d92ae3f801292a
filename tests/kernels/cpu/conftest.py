"""A caller for the CPU kernels that poisons what they must write, and the reference's answer beside it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from dynattn.kernels import cpu
from dynattn.kernels.pattern import Pattern
from dynattn.methods import NM, Mass, PairMethod, Threshold, TopK
from dynattn.reference import pairs as reference

ISAS = ("avx512", "avx2", "neon", "portable")


class Result(NamedTuple):
    out: Tensor
    logsumexp: Tensor
    kept_mass: Tensor
    kept: Tensor
    allowed: Tensor


@pytest.fixture(params=[isa for isa in ISAS if cpu.isa_available(isa)])
def isa(request: pytest.FixtureRequest) -> str:
    """Those that run here: test_isas.py says which do not, once each."""
    return request.param


@pytest.fixture
def forward() -> Callable[..., Result]:
    return _forward


@pytest.fixture
def grid() -> Callable[..., tuple[Tensor, Tensor, Tensor]]:
    return _grid


@pytest.fixture
def within() -> Callable[..., Tensor]:
    return _within


@pytest.fixture
def check() -> Callable[..., None]:
    return _check


def _forward(
    query: Tensor, key: Tensor, value: Tensor, method: NM | TopK | Threshold | Mass, isa: str, *,
    mask: Tensor | None = None,
    causal: bool = False, scale: float | None = None, aux: bool = True, blocks: Tensor | None = None,
    block_size: int = 0, alone: bool = False,
) -> Result:  # fmt: skip
    """``alone``: no gradient follows, so that rows that choose by their own scores give no thresholds."""
    rows = query.shape[:3]
    out = torch.full((*rows, value.shape[-1]), math.nan, dtype=query.dtype)
    logsumexp, kept_mass = torch.full(rows, math.nan), torch.full(rows, math.nan)
    kept, allowed = torch.full(rows, -1, dtype=torch.int32), torch.full(rows, -1, dtype=torch.int32)
    factor = query.shape[-1] ** -0.5 if scale is None else scale
    tensors = (
        query, key, value, None if mask is None else mask.expand(*rows, key.shape[2]), out, logsumexp,
        kept_mass if aux else None, kept if aux else None, allowed if aux else None,
    )  # fmt: skip
    if isinstance(method, NM):
        cpu.nm_forward(*tensors, Pattern.of(method, causal, factor), isa, blocks=blocks, block_size=block_size)
    else:
        thresholds = (torch.full(rows, math.nan), torch.full(rows, -2, dtype=torch.int32))
        asked = None if alone else thresholds
        cpu.row_forward(*tensors, asked, method.row_rule(), Pattern.of(NM(1, 1), causal, factor), isa)
        if alone:
            return Result(out, logsumexp, kept_mass, kept, allowed)
        assert not thresholds[0].isnan().any()
        assert (thresholds[1] != -2).all()
    return Result(out, logsumexp, kept_mass, kept, allowed)


def _grid(
    heads: int, kv_heads: int, q_len: int, kv_len: int, head_dim: int, value_dim: int, batch: int = 1, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """Small integer queries and keys, whose products are exact in every dtype: ties are many, the choice is certain."""
    generator = torch.Generator().manual_seed(seed)
    query = torch.randint(-2, 3, (batch, heads, q_len, head_dim), generator=generator).float()
    key = torch.randint(-2, 3, (batch, kv_heads, kv_len, head_dim), generator=generator).float()
    return query, key, torch.randn(batch, kv_heads, kv_len, value_dim, generator=generator)


def _check(
    query: Tensor, key: Tensor, value: Tensor, method: NM | TopK | Threshold | Mass, isa: str, *,
    mask: Tensor | None = None,
    causal: bool = False, scale: float = 0.25, counts: bool = True, blocks: Tensor | None = None, block_size: int = 0,
    alone: bool = False,
) -> None:  # fmt: skip
    """Kernel, with and without counts, against the reference in float64: error at most twice that of plain PyTorch."""
    whole = mask if blocks is None else _within(blocks, block_size, mask, query.shape[2], key.shape[2])
    exact = _reference(query.double(), key.double(), value.double(), method, whole, causal, scale)
    plain = _reference(query, key, value, method, whole, causal, scale)
    size = max(value.nan_to_num(0.0, 0.0, 0.0).abs().max().item(), 1.0)
    floor = size * {torch.float32: 2e-6, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}[query.dtype]
    for aux in (False, True) if counts else (False,):
        got = _forward(
            query, key, value, method, isa, mask=mask, causal=causal, scale=scale, aux=aux, blocks=blocks,
            block_size=block_size, alone=alone,
        )  # fmt: skip
        assert _error(got.out, exact.out) <= 2 * _error(plain.out, exact.out) + floor
        assert _error(got.logsumexp, exact.logsumexp) <= 2 * _error(plain.logsumexp, exact.logsumexp) + 4e-6
        if aux:
            assert _error(got.kept_mass, exact.kept_mass) <= 2 * _error(plain.kept_mass, exact.kept_mass) + 4e-6
            assert torch.equal(got.kept, exact.kept)
            assert torch.equal(got.allowed, exact.allowed)


def _within(blocks: Tensor, block_size: int, mask: Tensor | None, q_len: int, kv_len: int) -> Tensor:
    """A mask of what both blocks and mask allow."""
    kept = blocks.repeat_interleave(block_size, 2)[:, :, :q_len].repeat_interleave(block_size, 3)[..., :kv_len]
    if mask is None:
        return kept
    return kept & mask if mask.dtype == torch.bool else mask.where(kept, -math.inf)


def _reference(
    query: Tensor, key: Tensor, value: Tensor, method: PairMethod, mask: Tensor | None, causal: bool, scale: float
) -> reference.ForwardResult:
    if mask is not None and mask.dtype != torch.bool:
        mask = mask.to(query.dtype)
    return reference.forward(query, key, value, method, mask, causal, scale)


def _error(got: Tensor, want: Tensor) -> float:
    """Largest difference; infinity where one is not finite and the other differs."""
    got, want = got.double(), want.double()
    same = (got == want) | (got.isnan() & want.isnan())
    difference = (got - want).abs().masked_fill(same, 0.0).nan_to_num(math.inf)
    return difference.max().item() if difference.numel() else 0.0
