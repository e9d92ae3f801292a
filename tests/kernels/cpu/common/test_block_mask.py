"""Squares of queries and keys that are forbidden whole, against the reference with a mask of the same pairs."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from dynattn.kernels import cpu
from dynattn.kernels.pattern import Pattern
from dynattn.maths import dropout
from dynattn.methods.nm import NM
from dynattn.reference import pairs as reference

PATTERNS = [NM(1, 1), NM(1, 2), NM(2, 4, stride=16), NM(3, 5), NM(1, 2, window=5, sinks=3)]
SIZES = [1, 8, 16, 48, 64, 100, 1024]
# heads, kv_heads, q_len, kv_len: few queries, one band, bands and tiles cut in every way, more than one query block
LENGTHS = [(2, 2, 1, 1), (4, 2, 3, 300), (2, 1, 15, 16), (2, 2, 65, 63), (2, 1, 130, 200), (1, 1, 16, 257)]


def some_blocks(batch: int, heads: int, q_len: int, kv_len: int, block_size: int, share: float = 0.4) -> Tensor:
    """A random choice; of the last head the first row of blocks keeps nothing."""
    shape = (batch, heads, -(-q_len // block_size), -(-kv_len // block_size))
    blocks = torch.rand(shape, generator=torch.Generator().manual_seed(7)) < share
    blocks[:, -1, 0] = False
    return blocks


@pytest.mark.parametrize("method", PATTERNS, ids=lambda method: method.name)
@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
def test_matches_the_reference(method: NM, lengths: tuple, causal: bool, isa: str, grid, check) -> None:
    heads, kv_heads, q_len, kv_len = lengths
    tensors = grid(heads, kv_heads, q_len, kv_len, 20, 24, batch=2)
    for block_size in SIZES:
        blocks = some_blocks(2, heads, q_len, kv_len, block_size)
        check(*tensors, method, isa, causal=causal, blocks=blocks, block_size=block_size)


@pytest.mark.parametrize("kind", ["padding", "bool", "float"])
@pytest.mark.parametrize("method", PATTERNS[:3], ids=lambda method: method.name)
@pytest.mark.parametrize("q_len", [3, 77])
def test_masks(kind: str, method: NM, q_len: int, isa: str, grid, check) -> None:
    generator = torch.Generator().manual_seed(1)
    shape = {"padding": (2, 1, 1, 150), "bool": (2, 4, q_len, 150), "float": (1, 4, q_len, 150)}[kind]
    mask = torch.rand(shape, generator=generator) < 0.6
    if kind == "float":
        mask = torch.randint(-3, 4, shape, generator=generator).float().masked_fill(~mask, -math.inf)
    tensors = grid(4, 2, q_len, 150, 16, 24, batch=2)
    for block_size in (16, 64):
        blocks = some_blocks(2, 4, q_len, 150, block_size)
        check(*tensors, method, isa, mask=mask, causal=True, blocks=blocks, block_size=block_size)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_and_strides(dtype: torch.dtype, isa: str, grid, check) -> None:
    for q_len in (4, 130):
        query, key, value = (x.transpose(1, 2).contiguous().transpose(1, 2) for x in grid(4, 2, q_len, 140, 32, 40))
        tensors = [x.to(dtype) for x in (query, key, value)]
        check(*tensors, NM(1, 1), isa, blocks=some_blocks(1, 4, q_len, 140, 16), block_size=16, scale=-0.25)


def test_what_is_dropped_is_not_read(isa: str, grid, forward) -> None:
    """NaN and infinity in keys and values that nothing keeps; the rows of another head are as they were."""
    query, key, value = grid(2, 2, 70, 192, 16, 16)
    blocks = torch.ones(1, 2, 5, 12, dtype=torch.bool)
    blocks[:, 0, :, 5:8] = False
    blocks[:, 0, 2] = False  # a row of blocks without any
    options = {"blocks": blocks, "block_size": 16, "aux": False}
    clean = forward(query, key, value, NM(1, 1), isa, **options)
    key[0, 0, 80:128], value[0, 0, 85:120] = math.nan, math.inf
    got = forward(query, key, value, NM(1, 1), isa, **options)
    torch.testing.assert_close(got.out, clean.out)
    assert not got.out[0, 0, 32:48].any()
    assert torch.equal(got.logsumexp[0, 0, 32:48], torch.full((16,), -math.inf))
    key[0, 0, 3] = math.nan
    seen = forward(query, key, value, NM(1, 1), isa, **options).out[0, 0].isnan().all(-1)
    assert torch.equal(seen, torch.arange(70).div(16, rounding_mode="floor") != 2)


def test_all_kept_is_no_blocks(isa: str, grid, forward) -> None:
    query, key, value = grid(2, 1, 100, 150, 32, 64)
    blocks = torch.ones(1, 2, 2, 3, dtype=torch.bool)
    for method in PATTERNS[:3]:
        got = forward(query, key, value, method, isa, blocks=blocks, block_size=64, causal=True)
        for a, b in zip(got, forward(query, key, value, method, isa, causal=True), strict=True):
            torch.testing.assert_close(a, b)


def test_threads_change_no_bit(isa: str, forward) -> None:
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(1, 4, 700, 24, generator=generator)
    key, value = (torch.randn(1, 2, 700, 24, generator=generator) for _ in range(2))
    options = {"blocks": some_blocks(1, 4, 700, 700, 48), "block_size": 48, "causal": True}
    alone = forward(query, key, value, NM(1, 1), isa, **options)
    torch.set_num_threads(3)
    for a, b in zip(alone, forward(query, key, value, NM(1, 1), isa, **options), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("sizes", [(257, 512), (512, 320)], ids=str)
@pytest.mark.parametrize("q_len", [3, 70])
def test_wide_heads(q_len: int, sizes: tuple, isa: str, grid, check) -> None:
    for block_size in (16, 64):
        blocks = some_blocks(1, 2, q_len, 140, block_size)
        check(*grid(2, 1, q_len, 140, *sizes), NM(1, 1), isa, blocks=blocks, block_size=block_size, scale=0.0625)


@pytest.mark.parametrize("method", PATTERNS[:4], ids=lambda method: method.name)
@pytest.mark.parametrize("lengths", LENGTHS[1:], ids=str)
@pytest.mark.parametrize("dropout_p", [0.0, 0.3])
def test_gradients(method: NM, lengths: tuple, dropout_p: float, isa: str, grid, within: Callable) -> None:
    heads, kv_heads, q_len, kv_len = lengths
    query, key, value = grid(heads, kv_heads, q_len, kv_len, 20, 24)
    generator = torch.Generator().manual_seed(3)
    grad_out = torch.randn(1, heads, q_len, 24, generator=generator)
    grad_logsumexp = torch.randn(1, heads, q_len, generator=generator)
    drops = None
    if dropout_p:
        drops = dropout.factors(11, dropout_p, 1, heads, range(q_len), kv_len, query.device)
    for block_size, causal in ((8, True), (16, False), (64, True), (100, False)):
        blocks = some_blocks(1, heads, q_len, kv_len, block_size)
        pattern = Pattern.of(method, causal, 0.25)._replace(dropout_p=dropout_p)
        got = run_backward(query, key, value, grad_out, grad_logsumexp, pattern, isa, blocks, block_size)
        mask = within(blocks, block_size, None, q_len, kv_len)
        exact, plain = (
            reference.backward(
                convert(grad_out), convert(grad_logsumexp), convert(query), convert(key), convert(value), method, mask,
                causal, 0.25, drops=drops,
            )
            for convert in (Tensor.double, lambda x: x)
        )  # fmt: skip
        for mine, want, theirs in zip(got, exact, plain, strict=True):
            allowed = 2 * (theirs.double() - want).abs().max() + 4e-6 * max(1.0, want.abs().max().item())
            assert (mine.double() - want).abs().max().nan_to_num(math.inf) <= allowed, (block_size, causal)


def run_backward(
    query: Tensor, key: Tensor, value: Tensor, grad_out: Tensor, grad_logsumexp: Tensor, pattern: Pattern, isa: str,
    blocks: Tensor, block_size: int,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Gradients by the kernels; what they must write holds NaN before."""
    rows = query.shape[:3]
    out, logsumexp = torch.full((*rows, value.shape[3]), math.nan), torch.full(rows, math.nan)
    options = {"seed": 11, "blocks": blocks, "block_size": block_size}
    cpu.nm_forward(query, key, value, None, out, logsumexp, None, None, None, pattern, isa, needs_grad=True, **options)
    d_query, d_key, d_value = (torch.full_like(x, math.nan) for x in (query, key, value))
    d_scores = torch.zeros(*rows, key.shape[2])
    cpu.nm_backward(
        grad_out, grad_logsumexp, query, key, value, None, out, logsumexp, d_query, d_key, d_value, d_scores, pattern,
        isa, **options,
    )  # fmt: skip
    return d_query, d_key, d_value, d_scores


@pytest.mark.parametrize("block_size", [0, 1025])
def test_a_size_out_of_range_is_refused(block_size: int, isa: str, grid, forward) -> None:
    blocks = torch.ones(1, 1, 8, 8, dtype=torch.bool)
    with pytest.raises(RuntimeError, match="an argument is out of its range"):
        forward(*grid(1, 1, 8, 8, 8, 8), NM(1, 1), isa, blocks=blocks, block_size=block_size)
