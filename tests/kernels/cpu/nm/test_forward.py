"""The kernels against the reference: every layout, instruction set, mask, stride and dtype that they tell apart."""

from __future__ import annotations

import math

import pytest
import torch

from dynattn.kernels import cpu
from dynattn.kernels.cpu import loader
from dynattn.kernels.pattern import Pattern
from dynattn.methods.nm import NM, choose
from dynattn.reference import pairs as reference
from tests.covering import half

PATTERNS = [
    NM(1, 1), NM(1, 2), NM(2, 4), NM(1, 4), NM(3, 5), NM(5, 31), NM(16, 32),
    NM(1, 2, window=5, sinks=3), NM(2, 4, window=40), NM(2, 4, sinks=70), NM(1, 3, window=3, sinks=1),
    NM(1, 2, stride=16), NM(2, 4, stride=16), NM(2, 4, stride=3), NM(1, 2, window=5, sinks=3, stride=16),
]  # fmt: skip
# heads, kv_heads, q_len, kv_len, head_dim, value_dim
SHAPES = [
    (1, 1, 1, 1, 8, 8), (2, 1, 3, 4, 1, 1), (2, 2, 7, 63, 20, 36), (4, 2, 65, 111, 32, 32), (2, 2, 193, 130, 80, 96),
    (1, 1, 5, 384, 128, 256), (4, 2, 1, 300, 64, 72),
    (1, 1, 3, 4096, 256, 64), (2, 2, 64, 64, 64, 64),
]  # fmt: skip
# Wide heads: up to the largest, and where the last vector of a row and the last chunk of a value row are parts.
WIDE = [(1, 1, 20, 130, 257, 320), (2, 1, 7, 66, 512, 511), (1, 1, 3, 300, 320, 512), (2, 1, 1, 70, 511, 257)]
STRIDED = [NM(1, 2, stride=16), NM(2, 4, stride=16)]
FAST = [NM(1, 1), NM(1, 2), NM(2, 4), *STRIDED]
# In registers with vectors of 4 or 8 only, or with none; tiles of several blocks; the longest tile.
STRIDES = [
    NM(1, 2, stride=4), NM(1, 2, stride=8), NM(1, 2, stride=32), NM(1, 2, stride=64), NM(2, 4, stride=8),
    NM(2, 4, stride=32), NM(2, 4, stride=2), NM(1, 4, stride=16), NM(2, 3, stride=7), NM(2, 5, stride=51),
    NM(2, 4, window=9, sinks=2, stride=16),
]  # fmt: skip


def identify(value: object) -> str:
    return f"{value.name}" if isinstance(value, NM) else "x".join(map(str, value)) if isinstance(value, tuple) else ""


@pytest.mark.parametrize(
    ("shape", "method", "causal"),
    half(
        SHAPES,
        PATTERNS,
        [False, True],
    ),
)
def test_matches_the_reference(method, shape, causal, isa, grid, check):
    check(*grid(*shape), method, isa, causal=causal)


@pytest.mark.parametrize(
    ("shape", "method", "dtype"),
    half(
        WIDE,
        [*PATTERNS[:5], *STRIDED, NM(1, 2, window=5, sinks=3)],
        [torch.float32, torch.bfloat16, torch.float16],
    ),
)
def test_wide_heads(method, shape, dtype, isa, grid, check):
    check(*(x.to(dtype) for x in grid(*shape)), method, isa, causal=True, scale=0.0625)


@pytest.mark.parametrize("sizes", [(0, 8), (8, 0), (513, 8), (8, 513)], ids=identify)
def test_heads_out_of_range_are_refused(sizes, isa, forward):
    head_dim, value_dim = sizes
    query, value = torch.zeros(1, 1, 4, head_dim), torch.zeros(1, 1, 4, value_dim)
    with pytest.raises(RuntimeError, match="an argument is out of its range"):
        forward(query, query, value, NM(1, 2), isa, scale=1.0)


@pytest.mark.parametrize(
    ("kv_len", "method", "causal"),
    half(
        [1, 15, 17, 31, 32, 33, 63, 64, 65, 129, 300],
        [*STRIDED, *STRIDES],
        [False, True],
    ),
)
def test_groups_with_a_stride(method, kv_len, causal, isa, grid, check):
    check(*grid(2, 1, 40, kv_len, 12, 20), method, isa, causal=causal)


@pytest.mark.parametrize("method", STRIDED, ids=identify)
def test_a_stride_is_a_permutation_of_the_keys(method, isa, grid, forward):
    """The same choice and result as consecutive groups have on keys put in the order of their groups."""
    query, key, value = grid(2, 2, 30, 192, 16, 16)
    order = torch.arange(192).view(-1, method.m, method.stride).mT.flatten()
    strided = forward(query, key, value, method, isa)
    plain = forward(query, key[:, :, order], value[:, :, order], NM(method.n, method.m), isa)
    for name in ("out", "logsumexp", "kept_mass"):
        torch.testing.assert_close(getattr(strided, name), getattr(plain, name))


@pytest.mark.parametrize(
    ("kind", "method", "causal"),
    half(
        ["bool", "padding", "float", "bfloat16", "transposed", "shared by all"],
        [*PATTERNS[:5], PATTERNS[7], *STRIDED, NM(2, 4, stride=3)],
        [False, True],
    ),
)
def test_masks(method, kind, causal, isa, grid, check):
    query, key, value = grid(4, 2, 77, 150, 16, 24, batch=2)
    generator = torch.Generator().manual_seed(1)
    allowed = torch.rand(2, 4, 77, 150, generator=generator) > 0.4
    allowed[0, 1, 3] = False  # a row with nothing allowed
    bias = torch.randint(-3, 4, (1, 4, 77, 150), generator=generator).float().masked_fill(~allowed[:1], -math.inf)
    mask = {
        "bool": allowed,
        "padding": torch.arange(150) < torch.tensor([150, 70]).view(2, 1, 1, 1),
        "float": bias,
        "bfloat16": bias.bfloat16(),
        "transposed": bias.mT.contiguous().mT,
        "shared by all": torch.zeros(1, 1, 1, 1, dtype=torch.bool),
    }[kind]
    check(query, key, value, method, isa, mask=mask, causal=causal)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("method", [*FAST, NM(1, 3)], ids=identify)
def test_half_precision(method, dtype, isa, grid, check):
    check(*(x.to(dtype) for x in grid(2, 2, 70, 99, 20, 40)), method, isa, causal=True)


@pytest.mark.parametrize("order", ["length first", "gaps", "shared", "odd start"])
@pytest.mark.parametrize("method", FAST, ids=identify)
def test_strides(method, order, isa, grid, check):
    def lay(x: torch.Tensor) -> torch.Tensor:
        if order == "length first":
            return x.transpose(1, 2).contiguous().transpose(1, 2)
        if order == "gaps":
            return torch.nn.functional.pad(x, (0, 5), value=math.nan)[..., : x.shape[-1]]
        if order == "shared":
            return x[:1, :1].expand_as(x)
        return torch.cat((torch.tensor([math.nan]), x.flatten()))[1:].view_as(x)  # 4 bytes off any alignment

    check(*(lay(x) for x in grid(4, 4, 100, 75, 32, 64, batch=2)), method, isa)


@pytest.mark.parametrize("shape", [(0, 2, 5, 5), (1, 2, 0, 5), (1, 2, 5, 0)])
def test_empty(shape, isa, forward):
    batch, heads, q_len, kv_len = shape
    query, key = torch.randn(batch, heads, q_len, 8), torch.randn(batch, heads, kv_len, 8)
    got = forward(query, key, key, NM(2, 4), isa)
    assert torch.equal(got.out, torch.zeros(batch, heads, q_len, 8))
    assert torch.equal(got.logsumexp, torch.full((batch, heads, q_len), -math.inf))
    assert torch.equal(got.kept_mass, torch.ones(batch, heads, q_len))
    assert not got.kept.any()


@pytest.mark.parametrize("method", [NM(1, 2), NM(2, 4), NM(3, 8), *STRIDED, NM(1, 2, stride=3)], ids=identify)
def test_ties_go_to_the_lower_key(method, isa, forward):
    """All scores equal: the output is the mean of the first N values of each group."""
    key, value = torch.ones(1, 1, 100, 16), torch.randn(1, 1, 100, 16, generator=torch.Generator().manual_seed(0))
    first = value[:, :, torch.arange(100) // method.stride % method.m < method.n].mean(2, keepdim=True)
    for aux in (False, True):
        got = forward(torch.ones(1, 1, 3, 16), key, value, method, isa, aux=aux)
        torch.testing.assert_close(got.out, first.expand(1, 1, 3, 16))


@pytest.mark.parametrize("scale", [-0.25, 1e-40, 1e-30, -1e-36, 1e4])
@pytest.mark.parametrize("method", [*FAST, NM(1, 3)], ids=identify)
def test_scales(method, scale, isa, grid, check):
    check(*grid(1, 1, 20, 90, 16, 16), method, isa, scale=scale)


@pytest.mark.parametrize("method", FAST, ids=identify)
def test_random_scores(method, isa, forward):
    """Arithmetic on inexact scores, on rows where no choice hangs on rounding; large scores make rows rescale."""
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(1, 2, 320, 64, generator=generator) for _ in range(3))
    query *= torch.linspace(0.1, 30, 320).view(1, 1, -1, 1)
    key *= torch.linspace(0.1, 2, 320).view(1, 1, -1, 1)  # later tiles have larger scores
    exact = reference.forward(query.double(), key.double(), value.double(), method)
    s = reference.scores(query.double(), key.double(), None, False, 0.125)
    kept = choose(s, method)
    plain = reference.forward(query, key, value, method, kept=kept)
    groups = s.unflatten(-1, (-1, method.m, method.stride)).sort(-2, descending=True).values
    gaps = groups[..., method.n - 1, :] - groups[..., method.n, :] if method.n < method.m else groups[..., 0, :] * 0 + 1
    certain = gaps.flatten(-2).min(-1).values > 1e-6 * s.abs().amax(-1)
    assert certain.float().mean() > 0.9
    got = forward(query, key, value, method, isa, aux=False)
    for name in ("out", "logsumexp"):
        error, allowed = (
            (getattr(result, name)[certain] - getattr(exact, name)[certain]).abs().max() for result in (got, plain)
        )
        assert error <= 2 * allowed + 2e-6


@pytest.mark.parametrize("method", [*FAST, NM(1, 3), NM(1, 2, window=9)], ids=identify)
def test_lowest_float_as_a_bias(method, isa, grid, check, forward):
    """Masks made with the dtype's lowest number keep rows that forbid everything finite, as dense attention does."""
    mask = torch.zeros(1, 1, 40, 130)
    mask[..., 100:] = torch.finfo(torch.float32).min
    mask[..., 7, :] = torch.finfo(torch.float32).min
    query, key, value = grid(1, 1, 40, 130, 16, 16)
    query[:, :, 7] = 0  # at this size a bias swallows any score
    check(query, key, value, method, isa, mask=mask, counts=False)
    got = forward(query, key, value, method, isa, mask=mask)
    torch.testing.assert_close(got.kept_mass[..., 7], got.kept[..., 7] / got.allowed[..., 7])


@pytest.mark.parametrize("method", [*FAST, NM(1, 3), NM(2, 4, window=30)], ids=identify)
def test_nan_and_infinity_stay_in_their_rows(method, isa, grid, check):
    query, key, value = grid(2, 1, 50, 140, 16, 16)
    mask = torch.ones(1, 1, 50, 140, dtype=torch.bool)
    mask[..., 20:, 70] = False
    key[0, 0, 70, 3] = math.nan  # seen by the first 20 rows only
    query[0, 1, 40, 0] = math.nan
    check(query, key, value, method, isa, mask=mask)

    query, key, value = grid(2, 1, 50, 140, 16, 16)
    value[0, 0, 71, 2] = math.inf
    value[0, 0, 99, 5] = math.nan
    check(query, key, value, method, isa, causal=True)

    query, key, value = grid(1, 1, 50, 140, 16, 16)
    bias = torch.zeros(1, 1, 50, 140)
    bias[..., 8, 130], bias[..., 9, 10], bias[..., 10, 1] = math.nan, math.inf, 2e38
    check(query, key, value, method, isa, mask=bias)


@pytest.mark.parametrize("method", [*FAST, NM(1, 2, window=20, sinks=2), NM(3, 8)], ids=identify)
@pytest.mark.parametrize("q_len", [3, 700])
def test_threads_change_no_bit(method, q_len, isa, forward, monkeypatch):
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(1, 4, q_len, 24, generator=generator)
    key, value = (torch.randn(1, 2, 700, 24, generator=generator) for _ in range(2))
    alone = forward(query, key, value, method, isa, causal=True)
    for threads in (2, 3):
        torch.set_num_threads(threads)
        shared = forward(query, key, value, method, isa, causal=True)
        assert all(torch.equal(a, b) for a, b in zip(alone, shared, strict=True))
    monkeypatch.setattr(loader, "parallel", lambda: None)  # threads of the kernel's own
    own = forward(query, key, value, method, isa, causal=True)
    assert all(torch.equal(a, b) for a, b in zip(alone, own, strict=True))


@pytest.mark.parametrize("method", [*FAST, NM(3, 8)], ids=identify)
def test_permuted_queries_permute_the_output(method, isa, forward):
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(1, 2, 150, 40, generator=generator) for _ in range(3))
    order = torch.randperm(150, generator=generator)
    straight = forward(query, key, value, method, isa, aux=False)
    permuted = forward(query[:, :, order], key, value, method, isa, aux=False)
    assert torch.equal(permuted.out, straight.out[:, :, order])


@pytest.mark.parametrize("method", [*FAST, NM(3, 8)], ids=identify)
def test_parts_merge_by_logsumexp(method, isa, forward):
    """Whole groups are independent: parts of the keys give parts of the answer."""
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(1, 2, 160, 32, generator=generator) for _ in range(3))
    whole = forward(query, key, value, method, isa)
    parts = [forward(query, key[:, :, at], value[:, :, at], method, isa) for at in (slice(0, 64), slice(64, 160))]
    weights = torch.stack([part.logsumexp for part in parts]).softmax(0).unsqueeze(-1)
    merged = sum(weight * part.out for weight, part in zip(weights, parts, strict=True))
    torch.testing.assert_close(merged, whole.out, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("causal", [False, True])
def test_dense_is_sdpa(causal, isa, forward):
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(2, 3, 111, 64, generator=generator) for _ in range(3))
    want = torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=causal)
    torch.testing.assert_close(forward(query, key, value, NM(4, 4), isa, causal=causal).out, want)


@pytest.mark.parametrize("q_len", [3, 40])
@pytest.mark.parametrize("method", [*FAST, NM(3, 5)], ids=identify)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_output_alone(method, q_len, dtype, isa, grid, forward):
    """Without logsumexp, and nothing is written to where it would lie."""
    query, key, value = (x.to(dtype) for x in grid(4, 2, q_len, 70, 24, 20))
    key[:, :, 3, 5], value[:, :, 7, 2] = math.nan, math.inf
    whole = forward(query, key, value, method, isa, causal=True, aux=False)
    out = torch.full_like(whole.out, 7.0)
    pattern = Pattern.of(method, True, query.shape[-1] ** -0.5)
    cpu.nm_forward(query, key, value, None, out, None, None, None, None, pattern, isa)
    torch.testing.assert_close(out, whole.out, rtol=0, atol=0, equal_nan=True)


# Few queries (few_queries.h): kernels read keys and values in place up to 6 queries; 7 are packed.
QUERIES = [1, 2, 3, 4, 6, 7]
DECODE = [NM(1, 1), NM(1, 2), NM(2, 4), NM(3, 5), NM(5, 31), NM(1, 2, window=9, sinks=5), NM(2, 4, window=40, sinks=3)]
LONG = 2500  # keys: more than one range, and a partial last tile


@pytest.mark.parametrize("q_len", [12, 13])
@pytest.mark.parametrize("method", DECODE, ids=identify)
def test_few_queries_are_more_where_values_are_wide(method, q_len, isa, grid, check):
    check(*grid(4, 1, q_len, 700, 24, 80), method, isa, causal=True)


@pytest.mark.parametrize(
    ("q_len", "method", "causal", "sizes"),
    half(
        QUERIES,
        DECODE,
        [False, True],
        [(3, 3, 64, 64), (6, 2, 20, 36), (5, 1, 128, 80)],
    ),
)
def test_few_queries(method, q_len, causal, sizes, isa, grid, check):
    heads, kv_heads, head_dim, value_dim = sizes
    check(*grid(heads, kv_heads, q_len, LONG, head_dim, value_dim), method, isa, causal=causal)


@pytest.mark.parametrize(
    ("kind", "method", "q_len"),
    half(
        ["bool", "padding", "float", "bfloat16", "transposed", "nothing"],
        DECODE[1:],
        [1, 5, 7],
    ),
)
def test_few_queries_with_masks(method, q_len, kind, isa, grid, check):
    query, key, value = grid(4, 2, q_len, LONG, 16, 24, batch=2)
    generator = torch.Generator().manual_seed(1)
    allowed = torch.rand(2, 4, q_len, LONG, generator=generator) > 0.4
    allowed[0, 1, 0] = False  # a row with nothing allowed
    allowed[1, 2, 0, 64:] = False  # ranges with nothing allowed
    bias = torch.randint(-3, 4, (1, 4, q_len, LONG), generator=generator).float().masked_fill(~allowed[:1], -math.inf)
    mask = {
        "bool": allowed,
        "padding": torch.arange(LONG) >= torch.tensor([0, 1700]).view(2, 1, 1, 1),
        "float": bias,
        "bfloat16": bias.bfloat16(),
        "transposed": bias.mT.contiguous().mT,
        "nothing": torch.zeros(1, 1, 1, 1, dtype=torch.bool),
    }[kind]
    check(query, key, value, method, isa, mask=mask, causal=True)


@pytest.mark.parametrize(
    ("dtype", "q_len", "method"),
    half(
        [torch.bfloat16, torch.float16],
        QUERIES,
        DECODE,
    ),
)
def test_few_queries_in_half_precision(method, q_len, dtype, isa, grid, check):
    check(*(x.to(dtype) for x in grid(4, 2, q_len, LONG, 24, 40)), method, isa, scale=-0.25)


@pytest.mark.parametrize("q_len", [1, 4, 7])
@pytest.mark.parametrize("method", FAST, ids=identify)
def test_few_queries_of_a_cache(method, q_len, isa, grid, check):
    """Length first, a part of a longer cache whose other slots hold NaN, 4 bytes off any alignment."""

    def lay(x: torch.Tensor) -> torch.Tensor:
        slots = torch.nn.functional.pad(x.transpose(1, 2), (0, 1, 0, 0, 1, 70), value=math.nan)
        return slots[:, 1:-70, :, :-1].transpose(1, 2)

    check(*(lay(x) for x in grid(4, 2, q_len, 1300, 32, 64, batch=2)), method, isa)


@pytest.mark.parametrize("q_len", [1, 4, 7])
@pytest.mark.parametrize("method", DECODE, ids=identify)
def test_few_queries_keep_nan_and_infinity_in_their_rows(method, q_len, isa, grid, check):
    query, key, value = grid(4, 2, q_len, LONG, 16, 16)
    mask = torch.ones(1, 4, q_len, LONG, dtype=torch.bool)
    mask[..., 2000:] = False  # slots of a cache not written yet
    key[..., 2000:, :], value[..., 2000:, :] = math.nan, math.inf
    mask[:, :2, :, 70] = False
    key[0, 0, 70, 3] = math.nan  # seen by no query head of its own
    key[0, 1, 71, 3] = math.nan
    query[0, 3, -1, 0] = math.inf
    check(query, key, value, method, isa, mask=mask)

    query, key, value = grid(4, 2, q_len, LONG, 16, 16)
    value[0, 0, 71, 2], value[0, 1, 1999, 5] = math.inf, math.nan
    check(query, key, value, method, isa, causal=True)

    query, key, value = grid(4, 2, q_len, LONG, 16, 16)
    bias = torch.zeros(1, 4, q_len, LONG)
    bias[:, 0, 0, 2300], bias[:, 1, 0, 1500], bias[:, 2, 0, 1], bias[:, 3, 0, 9] = math.nan, math.inf, 2e38, -math.inf
    check(query, key, value, method, isa, mask=bias)


@pytest.mark.parametrize("q_len", [1, 6])
@pytest.mark.parametrize("method", [*FAST, NM(1, 2, window=20, sinks=2), NM(3, 8)], ids=identify)
def test_few_queries_on_threads_change_no_bit(method, q_len, isa, forward):
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(1, 4, q_len, 64, generator=generator)
    key, value = (torch.randn(1, 2, 5000, 64, generator=generator) for _ in range(2))
    alone = forward(query, key, value, method, isa, causal=True)
    for threads in (2, 3):
        torch.set_num_threads(threads)
        shared = forward(query, key, value, method, isa, causal=True)
        assert all(torch.equal(a, b) for a, b in zip(alone, shared, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("method", [NM(1, 1), NM(1, 2), NM(2, 4), NM(3, 8)], ids=identify)
def test_key_heads_that_are_taken_together_change_no_bit(method, dtype, isa, forward):
    """Where their rows for one key lie side by side; in one range of keys and in three, with masks that empty a head's
    tiles. Each head has keys of its own size, so that none can be taken for another's."""
    generator = torch.Generator().manual_seed(0)
    for kv_len in (150, 1100):
        query = torch.randn(2, 12, 2, 24, generator=generator).to(dtype)
        sizes = torch.arange(1, 7).view(1, 6, 1, 1)
        key, value = (
            (sizes * torch.randn(2, 6, kv_len, dim, generator=generator)).to(dtype) for dim in (24, 40)
        )  # fmt: skip
        mask = torch.rand(2, 12, 1, kv_len, generator=generator) > 0.1
        mask[0, 4:6, :, 64:128], mask[1, 2] = False, False
        beside = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in (key, value)]
        for options in ({}, {"mask": mask, "causal": True, "aux": False}):
            alone = forward(query, key, value, method, isa, **options)
            together = forward(query, *beside, method, isa, **options)
            for a, b in zip(alone, together, strict=True):
                torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("method", [NM(1, 2), NM(2, 4), NM(3, 8)], ids=identify)
def test_few_queries_choose_as_many_do(method, isa, grid, forward):
    """Where products are exact the two paths make the same choice, ties included."""
    query, key, value = grid(4, 2, 40, LONG, 64, 64)
    many, few = forward(query, key, value, method, isa), forward(query[:, :, -3:], key, value, method, isa)
    torch.testing.assert_close(few.out, many.out[:, :, -3:], atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(few.kept_mass, many.kept_mass[:, :, -3:], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("method", FAST, ids=identify)
def test_few_queries_with_growing_scores(method, isa, forward):
    """Every range has larger scores than the one before, so that merging rescales; keys come in equal groups."""
    generator = torch.Generator().manual_seed(0)
    key = torch.randn(1, 1, LONG // 4, 64, generator=generator).repeat_interleave(4, dim=2)
    key *= torch.linspace(0.1, 40, LONG // 4).repeat_interleave(4).view(1, 1, -1, 1)
    query, value = torch.randn(1, 1, 2, 64, generator=generator), torch.randn(1, 1, LONG, 64, generator=generator)
    got = forward(query, key, value, method, isa, aux=False)
    exact = reference.forward(query.double(), key.double(), value.double(), method)
    plain = reference.forward(query, key, value, method)
    for name in ("out", "logsumexp"):
        error, allowed = ((getattr(x, name) - getattr(exact, name)).abs().max() for x in (got, plain))
        assert error <= 2 * allowed + 2e-6
