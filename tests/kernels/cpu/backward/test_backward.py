"""The CPU backward kernel against the reference's gradients in float64."""

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

PATTERNS = (
    NM(1, 2), NM(2, 4), NM(1, 2, stride=16), NM(2, 4, stride=16), NM(1, 2, window=9, sinks=3), NM(2, 4, stride=3),
    NM(3, 8), NM(2, 2), NM(1, 4, window=5, stride=4),
)  # fmt: skip
SHAPES = (  # heads, kv_heads, q_len, kv_len, head_dim, value_dim
    (1, 1, 1, 1, 8, 8), (2, 1, 5, 1, 20, 8), (2, 2, 63, 111, 32, 20), (4, 2, 111, 63, 20, 33), (1, 1, 49, 600, 80, 96),
    (1, 1, 130, 65, 128, 256), (6, 2, 4, 70, 16, 16),
)  # fmt: skip


@pytest.mark.parametrize("pattern", PATTERNS, ids=lambda method: method.name)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("causal", [False, True])
def test_gradients(pattern: NM, shape: tuple, causal: bool, isa: str, grid: Callable) -> None:
    check(*grid(*shape), method=pattern, isa=isa, causal=causal)


@pytest.mark.parametrize("pattern", PATTERNS[:8], ids=lambda method: method.name)
@pytest.mark.parametrize("sizes", [(257, 320), (512, 511), (320, 512), (511, 257)], ids=str)
def test_wide_heads(pattern: NM, sizes: tuple[int, int], isa: str, grid: Callable) -> None:
    check(*grid(2, 1, 30, 100, *sizes), method=pattern, isa=isa, causal=True, scale=0.0625, dropout_p=0.2)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("pattern", PATTERNS[:6], ids=lambda method: method.name)
def test_half_precision(dtype: torch.dtype, pattern: NM, isa: str, grid: Callable) -> None:
    check(*(x.to(dtype) for x in grid(2, 1, 70, 90, 64, 40)), method=pattern, isa=isa, causal=True)


@pytest.mark.parametrize("pattern", PATTERNS, ids=lambda method: method.name)
@pytest.mark.parametrize("kind", ["bool", "padding", "additive", "empty rows"])
def test_masks(pattern: NM, kind: str, isa: str, grid: Callable) -> None:
    generator = torch.Generator().manual_seed(1)
    query, key, value = grid(4, 2, 70, 99, 24, 32, batch=2)
    shape = {"bool": (2, 4, 70, 99), "padding": (2, 1, 1, 99), "additive": (4, 70, 99), "empty rows": (70, 99)}[kind]
    mask = torch.rand(shape, generator=generator) > 0.3
    if kind == "additive":
        mask = torch.randint(-2, 3, shape, generator=generator).float().masked_fill(~mask, -math.inf)
    if kind == "empty rows":
        mask[::3] = False
    check(query, key, value, method=pattern, isa=isa, mask=mask, causal=kind == "bool")


def test_strided_inputs_and_gradients(isa: str, grid: Callable) -> None:
    query, key, value = (x.transpose(1, 2).contiguous().transpose(1, 2) for x in grid(4, 2, 70, 90, 32, 32))
    check(query, key, value, method=NM(1, 2), isa=isa)
    check(*(x.expand(3, -1, -1, -1) for x in (query, key, value)), method=NM(1, 2), isa=isa)


@pytest.mark.parametrize("pattern", PATTERNS, ids=lambda method: method.name)
@pytest.mark.parametrize("scale", [-0.3, 1e-3, 4.0])
def test_scales(pattern: NM, scale: float, isa: str, grid: Callable) -> None:
    check(*grid(2, 1, 60, 130, 16, 16), method=pattern, isa=isa, scale=scale)


LOWEST = torch.finfo(torch.float32).min


@pytest.mark.parametrize("pattern", [NM(1, 1), *PATTERNS[:1], *PATTERNS[3:5], NM(3, 8)], ids=lambda m: m.name)
def test_rows_whose_logsumexp_is_rounded(pattern: NM, isa: str, grid: Callable) -> None:
    """Scores so large in size that nothing is left of the logarithm of their number, beside others."""
    for low in (LOWEST, -1e9, -1e4, -300.0, 1e9):
        query, key, value = grid(2, 1, 20, 150, 16, 24)
        mask = torch.zeros(20, 150)
        mask[3], mask[9] = low, low
        mask[9, :70] = -math.inf
        query[:, :, [3, 9]] = 0  # so that no bias rounds a score
        check(query, key, value, method=pattern, isa=isa, mask=mask, dropout_p=0.3 if low == -1e9 else 0.0)
    mask[5], mask[6, 40:] = LOWEST, LOWEST
    for dtype in (torch.bfloat16, torch.float16):
        query[:, :, 5] = 0
        check(query.to(dtype), key.to(dtype), value.to(dtype), method=pattern, isa=isa, mask=mask)


@pytest.mark.parametrize("pattern", [NM(1, 1), *PATTERNS[:2]], ids=lambda method: method.name)
def test_products_that_are_large(pattern: NM, isa: str, grid: Callable) -> None:
    """Scores of 2^30 and -2^30, most of them equal, over several sections and parts of the keys."""
    for size in (2.0**30, -(2.0**30)):
        query, key, value = grid(2, 1, 7, 1100, 8, 8)
        query[:], key[..., 0] = 0, 1
        query[..., 0], key[..., 100:103, 0] = size, 1 + 2.0**-10
        check(query, key, value, method=pattern, isa=isa, causal=True, scale=1.0)


@pytest.mark.parametrize("pattern", PATTERNS, ids=lambda method: method.name)
def test_dropout(pattern: NM, isa: str, grid: Callable) -> None:
    check(*grid(4, 2, 61, 130, 16, 24, batch=2), method=pattern, isa=isa, causal=True, dropout_p=0.3)


def test_few_heads_are_cut_into_parts(isa: str, grid: Callable) -> None:
    """More keys than a section has: dQ is summed over the parts of a head, and over the sections of a part."""
    check(*grid(2, 1, 50, 2300, 16, 8), method=NM(1, 2), isa=isa)
    check(*grid(9, 9, 5, 1100, 8, 8), method=NM(2, 4), isa=isa)


@pytest.mark.parametrize("pattern", [NM(1, 2), NM(2, 4, stride=16), NM(3, 8)], ids=lambda method: method.name)
def test_threads_change_no_bit(pattern: NM, isa: str) -> None:
    generator = torch.Generator().manual_seed(2)
    query, key, value, grad = (torch.randn(1, 2, length, 32, generator=generator) for length in (300, 1500, 1500, 300))
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results.append(backward(query, key, value, grad, torch.zeros(1, 2, 300), pattern, isa, None, True, 0.2, 0.0))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("pattern", [NM(1, 2), NM(2, 4), NM(1, 2, stride=16), NM(3, 8)], ids=lambda m: m.name)
def test_the_choice_is_the_forwards_where_scores_nearly_tie(pattern: NM, isa: str) -> None:
    """Pairs of keys that differ in the last bits: dV is nonzero for the very keys that the output was made of."""
    generator = torch.Generator().manual_seed(3)
    kv_len, head_dim = 192, 64
    key = torch.randn(1, 1, kv_len, head_dim, generator=generator)
    groups = torch.arange(kv_len).view(-1, pattern.m, pattern.stride)
    for slot in range(1, pattern.m):
        noise = 1 + 2e-7 * torch.randn(key[:, :, groups[:, 0]].shape, generator=generator)
        key[:, :, groups[:, slot]] = key[:, :, groups[:, 0]] * noise
    value = torch.eye(kv_len).view(1, 1, kv_len, kv_len)
    for _ in range(20):
        query = torch.randn(1, 1, 1, head_dim, generator=generator)
        out, gradients = run(
            query, key, value, torch.ones(1, 1, 1, kv_len), torch.zeros(1, 1, 1), pattern, isa, None, False, 0.125, 0.0
        )
        kept = out[0, 0, 0] > 0
        assert int(kept.sum()) == kv_len * pattern.n // pattern.m
        assert torch.equal(gradients[2][0, 0].sum(-1) > 0, kept)


def test_garbage_behind_a_mask_reaches_no_gradient(isa: str, grid: Callable) -> None:
    query, key, value = grid(2, 1, 20, 70, 16, 16)
    mask = torch.ones(70, dtype=torch.bool)
    mask[40:] = False
    clean = backward(query, key, value, value[:, :, :20].repeat(1, 2, 1, 1), torch.zeros(1, 2, 20), NM(1, 2), isa, mask,
                     False, 0.25, 0.0)  # fmt: skip
    for poison in (math.nan, math.inf):
        key[:, :, 40:], value[:, :, 40:] = poison, poison
        got = backward(query, key, value, value[:, :, :20].repeat(1, 2, 1, 1), torch.zeros(1, 2, 20), NM(1, 2), isa,
                       mask, False, 0.25, 0.0)  # fmt: skip
        for a, b in zip(got, clean, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_nan_in_a_kept_key_shows(isa: str, grid: Callable) -> None:
    query, key, value = grid(1, 1, 6, 70, 16, 16)
    key[0, 0, 5, 3] = math.nan
    d_query, d_key, d_value, _ = backward(
        query, key, value, torch.ones(1, 1, 6, 16), torch.zeros(1, 1, 6), NM(1, 2), isa, None, False, 0.25, 0.0
    )
    assert d_query.isnan().all()
    assert d_key[0, 0, 5].isnan().all()
    assert d_value[0, 0, 5].isnan().all()


def check(
    query: Tensor, key: Tensor, value: Tensor, *, method: NM, isa: str, mask: Tensor | None = None,
    causal: bool = False, scale: float = 0.25, dropout_p: float = 0.0,
) -> None:  # fmt: skip
    """Kernel against the reference in float64: error at most twice that of plain PyTorch in the same dtype."""
    generator = torch.Generator().manual_seed(4)
    rows = query.shape[:3]
    grad_out = torch.randn(*rows, value.shape[3], generator=generator).to(query.dtype)
    grad_logsumexp = torch.randn(rows, generator=generator)
    drops = None
    if dropout_p:
        drops = dropout.factors(SEED, dropout_p, rows[0], rows[1], range(rows[2]), key.shape[2], query.device)
    got = backward(query, key, value, grad_out, grad_logsumexp, method, isa, mask, causal, scale, dropout_p)
    exact, plain = (
        reference.backward(
            convert(grad_out), convert(grad_logsumexp), convert(query), convert(key), convert(value), method,
            mask, causal, scale, drops=drops,
        )
        for convert in (Tensor.double, lambda x: x)
    )  # fmt: skip
    unit = {torch.float32: 4e-6, torch.bfloat16: 2.0**-7, torch.float16: 2.0**-10}[query.dtype]
    for name, mine, want, theirs in zip(exact._fields, got, exact, plain, strict=True):
        size = max(1.0, want.abs().max().item())
        allowed = 2 * (theirs.to(query.dtype).double() - want).abs().max().item() + unit * size
        error = (mine.double() - want).abs().max().nan_to_num(math.inf).item()
        assert error <= allowed, f"gradient of {name}: error {error}, allowed {allowed}"


SEED = 12345678901234567


def backward(*arguments) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return run(*arguments)[1]


def run(
    query: Tensor, key: Tensor, value: Tensor, grad_out: Tensor, grad_logsumexp: Tensor, method: NM, isa: str,
    mask: Tensor | None, causal: bool, scale: float, dropout_p: float,
) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor, Tensor]]:  # fmt: skip
    """Output and gradients by the kernels; what they must write holds NaN before."""
    rows = query.shape[:3]
    out = torch.full((*rows, value.shape[3]), math.nan, dtype=query.dtype)
    logsumexp = torch.full(rows, math.nan)
    mask = None if mask is None else mask.expand(*rows, key.shape[2])
    pattern = Pattern.of(method, causal, scale)._replace(dropout_p=dropout_p)
    cpu.nm_forward(
        query, key, value, mask, out, logsumexp, None, None, None, pattern, isa, seed=SEED, needs_grad=True
    )  # fmt: skip
    d_query, d_key, d_value = (torch.full_like(x, math.nan) for x in (query, key, value))
    d_query, d_key, d_value = (x if x.stride(0) else x.contiguous() for x in (d_query, d_key, d_value))
    d_scores = torch.zeros(*rows, key.shape[2])
    cpu.nm_backward(
        grad_out, grad_logsumexp, query, key, value, mask, out, logsumexp, d_query, d_key, d_value, d_scores, pattern,
        isa, seed=SEED,
    )  # fmt: skip
    return out, (d_query, d_key, d_value, d_scores)


def test_a_forward_that_wrote_no_logsumexp_has_no_gradient(isa: str) -> None:
    x, rows, nothing = torch.zeros(1, 1, 4, 8), torch.zeros(1, 1, 4), torch.empty(0)
    pattern = Pattern.of(NM(1, 2), False, 1.0)
    with pytest.raises(RuntimeError, match="out of its range"):
        cpu.nm_backward(x, rows, x, x, x, None, x, nothing, x, x, x, None, pattern, isa)
