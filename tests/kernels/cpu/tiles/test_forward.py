"""The tile kernels' forward against the reference: every pattern, mask, stride and size that they tell apart."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from dynattn.kernels import cpu
from dynattn.kernels.pattern import Pattern
from dynattn.maths import dropout
from dynattn.methods import NM
from tests.covering import half
from tests.kernels.cpu.tiles.calling import Problem, Sums, check, error, grid, reference_of, run

PATTERNS = [
    NM(1, 1), NM(1, 2), NM(2, 4), NM(1, 2, stride=16), NM(2, 4, stride=16),  # chosen between whole vectors
    NM(1, 2, stride=2), NM(2, 4, stride=6), NM(1, 2, stride=3), NM(2, 4, stride=3), NM(1, 4), NM(1, 4, stride=8),
    NM(3, 5), NM(5, 31), NM(16, 32), NM(2, 5, stride=51), NM(2, 3, stride=64),
    NM(1, 2, window=5, sinks=3), NM(2, 4, window=40), NM(2, 4, sinks=70), NM(1, 3, window=3, sinks=1),
    NM(1, 2, window=5, sinks=3, stride=16), NM(1, 4, window=9, stride=16),
]  # fmt: skip
IN_ORDER = PATTERNS[:11]
# heads, kv_heads, q_len, kv_len, head_dim, value_dim
SHAPES = [
    (1, 1, 1, 1, 8, 8), (2, 1, 3, 4, 1, 1), (2, 2, 7, 63, 20, 36), (4, 2, 65, 111, 32, 32), (2, 2, 193, 130, 80, 96),
    (4, 2, 17, 300, 64, 72), (2, 2, 64, 64, 64, 64), (1, 1, 33, 100, 31, 33), (1, 1, 5, 384, 128, 256),
]  # fmt: skip


def identify(value: object) -> str:
    return f"{value.name}" if isinstance(value, NM) else "x".join(map(str, value)) if isinstance(value, tuple) else ""


@pytest.mark.parametrize("method", [NM(1, 2), NM(3, 5)], ids=identify)
def test_the_output_alone(method: NM, engine: str):
    problem = grid(4, 2, 40, 70, 24, 20, method=method, causal=True)
    problem.key[:, :, 3, 5], problem.value[:, :, 7, 2] = math.nan, math.inf
    whole = run(problem, engine, Sums.ROUNDED)
    out = torch.full_like(whole.out, 7.0)
    pattern = Pattern.of(method, True, problem.scale)
    cpu.nm_forward(problem.query, problem.key, problem.value, None, out, None, None, None, None, pattern, engine)
    torch.testing.assert_close(out, whole.out, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize(
    ("shape", "method", "causal"),
    half(
        SHAPES,
        PATTERNS,
        [False, True],
    ),
)
def test_matches_the_reference(method: NM, shape: tuple, causal: bool, engine: str):
    check(grid(*shape), engine, method=method, causal=causal)


@pytest.mark.parametrize("dims", [(512, 512), (511, 1), (1, 512), (257, 300)], ids=identify)
@pytest.mark.parametrize("method", [NM(1, 1), NM(1, 2), NM(2, 4), NM(1, 3)], ids=identify)
def test_dims_up_to_512(method: NM, dims: tuple, engine: str):
    check(grid(2, 1, 35, 70, *dims), engine, method=method)


@pytest.mark.parametrize(
    ("kv_len", "method", "head_dim"),
    half(
        [1, 15, 16, 17, 31, 32, 33, 63, 64, 65, 96, 127, 128, 129, 255, 257],
        [*IN_ORDER, NM(3, 5), NM(2, 5, stride=51)],
        [32, 20],  # keys in place, and packed
    ),
)
def test_tails(method: NM, kv_len: int, head_dim: int, engine: str):
    check(grid(2, 1, 40, kv_len, head_dim, 20), engine, method=method, causal=kv_len % 2 == 1)


MASKS = ["bool", "padding", "left padding", "float", "bfloat16", "transposed", "shared by all"]


@pytest.mark.parametrize(
    ("kind", "method", "causal"),
    half(
        MASKS,
        [*PATTERNS[:5], NM(2, 4, stride=3), NM(1, 2, window=5, sinks=3)],
        [False, True],
    ),
)
def test_masks(method: NM, kind: str, causal: bool, engine: str):
    problem = grid(4, 2, 77, 150, 16, 24, batch=2)
    generator = torch.Generator().manual_seed(1)
    allowed = torch.rand(2, 4, 77, 150, generator=generator) > 0.4
    allowed[0, 1, 3] = False  # a row with nothing allowed
    bias = torch.randint(-3, 4, (1, 4, 77, 150), generator=generator).float().masked_fill(~allowed[:1], -math.inf)
    mask = {
        "bool": allowed,
        "padding": torch.arange(150) < torch.tensor([150, 70]).view(2, 1, 1, 1),
        "left padding": torch.arange(150) >= torch.tensor([0, 70]).view(2, 1, 1, 1),
        "float": bias,
        "bfloat16": bias.bfloat16(),
        "transposed": bias.mT.contiguous().mT,
        "shared by all": torch.zeros(1, 1, 1, 1, dtype=torch.bool),
    }[kind]
    check(problem, engine, method=method, mask=mask, causal=causal)


@pytest.mark.parametrize("order", ["length first", "gaps", "shared", "odd start"])
@pytest.mark.parametrize("method", PATTERNS[:5], ids=identify)
def test_strides(method: NM, order: str, engine: str):
    def lay(x: Tensor) -> Tensor:
        if order == "length first":
            return x.transpose(1, 2).contiguous().transpose(1, 2)
        if order == "gaps":
            return torch.nn.functional.pad(x, (0, 5), value=math.nan)[..., : x.shape[-1]]
        if order == "shared":
            return x[:1, :1].expand_as(x)
        return torch.cat((torch.tensor([math.nan]).to(x), x.flatten()))[1:].view_as(x)  # 2 bytes off any alignment

    problem = grid(4, 4, 100, 75, 32, 64, batch=2)
    check(problem, engine, method=method, query=lay(problem.query), key=lay(problem.key), value=lay(problem.value))


def test_what_lies_around_the_tensors_is_not_read(engine: str):
    """Keys and values of one head are surrounded by NaN; tiles end with the last row."""
    for kv_len in (40, 64, 70, 96):
        problem = grid(1, 1, 20, kv_len, 64, 48)
        key, value = (torch.nn.functional.pad(x, (0, 0, 40, 40), value=math.nan) for x in (problem.key, problem.value))
        check(problem, engine, key=key[:, :, 40:-40], value=value[:, :, 40:-40])


@pytest.mark.parametrize(
    ("size", "method", "causal"),
    half(
        [1, 8, 16, 32, 48, 64, 100, 1024],
        [NM(1, 1), NM(1, 2), NM(2, 4, stride=16), NM(3, 5)],
        [False, True],
    ),
)
def test_blocks(method: NM, size: int, causal: bool, engine: str):
    for q_len, kv_len in ((1, 1), (15, 16), (65, 63), (130, 200)):
        problem = grid(4, 2, q_len, kv_len, 20, 24, batch=2)
        check(problem, engine, method=method, causal=causal, blocks=some_blocks(problem, size), block_size=size)


def some_blocks(problem: Problem, size: int) -> Tensor:
    """A random choice; of the last head the first row of blocks keeps nothing."""
    batch, heads, q_len = problem.rows
    shape = (batch, heads, -(-q_len // size), -(-problem.key.shape[2] // size))
    blocks = torch.rand(shape, generator=torch.Generator().manual_seed(7)) < 0.4
    blocks[:, -1, 0] = False
    return blocks


def test_dropped_blocks_leave_no_trace(engine: str):
    """NaN and infinity in keys and values that nothing keeps."""
    problem = grid(2, 2, 70, 192, 32, 16)
    blocks = torch.ones(1, 2, 5, 12, dtype=torch.bool)
    blocks[:, 0, :, 5:8] = False
    blocks[:, 0, 2] = False  # a row of blocks without any
    problem = replace(problem, method=NM(1, 1), blocks=blocks, block_size=16)
    clean = run(problem, engine, Sums.EXACT)
    key, value = problem.key.clone(), problem.value.clone()
    key[0, 0, 80:128], value[0, 0, 85:120] = math.nan, math.inf
    got = run(replace(problem, key=key, value=value), engine, Sums.EXACT)
    torch.testing.assert_close(got.out, clean.out, atol=2.0**-7, rtol=2.0**-7)  # by the careful variant
    assert not got.out[0, 0, 32:48].any()
    assert torch.equal(got.logsumexp[0, 0, 32:48], torch.full((16,), -math.inf))


@pytest.mark.parametrize("shape", [(0, 2, 5, 5), (1, 2, 0, 5), (1, 2, 5, 0)])
def test_empty(shape: tuple, engine: str):
    batch, heads, q_len, kv_len = shape
    query, key = (torch.randn(batch, heads, length, 8).bfloat16() for length in (q_len, kv_len))
    got = run(Problem(query, key, key, NM(2, 4)), engine)
    assert torch.equal(got.out, torch.zeros(batch, heads, q_len, 8).bfloat16())
    assert torch.equal(got.logsumexp, torch.full((batch, heads, q_len), -math.inf))
    assert torch.equal(got.kept_mass, torch.ones(batch, heads, q_len))
    assert not got.kept.any()


@pytest.mark.parametrize("method", PATTERNS[:15], ids=identify)
def test_ties_go_to_the_lower_key(method: NM, engine: str):
    """All scores equal: the output is the mean of the first N values of each group."""
    key = torch.ones(1, 1, 100, 16).bfloat16()
    value = torch.randn(1, 1, 100, 16, generator=torch.Generator().manual_seed(0)).bfloat16()
    first = value[:, :, torch.arange(100) // method.stride % method.m < method.n].float().mean(2, keepdim=True)
    for sums in Sums:
        got = run(Problem(torch.ones(1, 1, 3, 16).bfloat16(), key, value, method), engine, sums)
        torch.testing.assert_close(got.out, first.expand(1, 1, 3, 16).bfloat16())


@pytest.mark.parametrize("scale", [-0.25, 1e-40, 1e-30, -1e-36, 1.0, 40.0, 1e4, 1e30])
@pytest.mark.parametrize("method", [*IN_ORDER, NM(1, 3)], ids=identify)
def test_scales(method: NM, scale: float, engine: str):
    check(grid(1, 1, 20, 90, 16, 16), engine, method=method, scale=scale)


@pytest.mark.parametrize("method", [*PATTERNS[:5], NM(1, 3), NM(1, 2, window=9)], ids=identify)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lowest_number_as_a_bias(method: NM, dtype: torch.dtype, engine: str):
    """Masks made with the dtype's lowest number keep rows that forbid everything finite, as dense attention does."""
    mask = torch.zeros(1, 1, 40, 230, dtype=dtype)
    mask[..., 200:] = torch.finfo(dtype).min
    mask[..., 9, :128] = torch.finfo(dtype).min  # padding on the left, of more than one block of keys
    mask[..., 7, :] = torch.finfo(dtype).min
    problem = grid(1, 1, 40, 230, 16, 16)
    problem.query[:, :, 7] = 0  # at this size a bias swallows any score
    check(problem, engine, method=method, mask=mask)


@pytest.mark.parametrize("method", [NM(1, 1), NM(1, 2), NM(2, 4), NM(1, 3)], ids=identify)
@pytest.mark.parametrize("low", [-1e4, -1e5, -3e5, -4e5, -1e6, -1e30])
def test_low_biases_matter_beside_each_other(method: NM, low: float, engine: str):
    """Where a whole row is that low, it is a softmax like any other; beside higher scores nothing is left of it."""
    mask = torch.full((1, 1, 8, 150), low)
    mask[..., 0, 70], mask[..., 1, 149], mask[..., 2, 3] = 0.0, 0.0, 0.0
    mask[..., 3, 64:], mask[..., 4, :64], mask[..., 5, 64:] = 2 * low, 2 * low, low + 0.01 * abs(low)
    problem = grid(1, 1, 8, 150, 16, 16)
    problem.query[:] = 0  # a score is its bias, so that no rounding decides between neighbours
    check(problem, engine, method=method, mask=mask)


@pytest.mark.parametrize("method", [*PATTERNS[:5], NM(1, 3), NM(2, 4, window=30)], ids=identify)
def test_nan_and_infinity_stay_in_their_rows(method: NM, engine: str):
    problem = grid(2, 1, 50, 140, 32, 16)
    mask = torch.ones(1, 1, 50, 140, dtype=torch.bool)
    mask[..., 20:, 70] = False
    problem.key[0, 0, 70, 3] = math.nan  # seen by the first 20 rows only
    problem.query[0, 1, 40, 0] = math.nan
    check(problem, engine, method=method, mask=mask)

    problem = grid(2, 1, 50, 140, 16, 15)
    problem.value[0, 0, 71, 2] = math.inf
    problem.value[0, 0, 99, 5] = math.nan
    problem.value[0, 0, 139, 14] = -math.inf
    check(problem, engine, method=method, causal=True)

    problem = grid(1, 1, 50, 140, 16, 16)
    bias = torch.zeros(1, 1, 50, 140)
    bias[..., 8, 130], bias[..., 9, 10], bias[..., 10, 1] = math.nan, math.inf, 2e38
    check(problem, engine, method=method, mask=bias)


@pytest.mark.parametrize("method", [*PATTERNS[:5], NM(1, 3), NM(2, 4, window=30)], ids=identify)
def test_scores_that_overflow(method: NM, engine: str):
    """A score beyond float32 is infinite, as in plain PyTorch, and its row has no answer; other rows have theirs."""
    problem = grid(1, 1, 50, 140, 16, 16, method=method)
    problem.query[..., 49, :], problem.key[..., 100, :] = 2.0**100, 2.0**100
    plain = reference_of(problem, lambda x: x)
    assert plain.out[..., 49, :].isnan().all()
    for sums in Sums:
        got = run(problem, engine, sums)
        assert got.out[..., 49, :].isnan().all()
        torch.testing.assert_close(got.logsumexp[..., 49], plain.logsumexp[..., 49].float(), equal_nan=True)
    check(problem, engine, query=problem.query[..., :49, :])


@pytest.mark.parametrize("method", [*PATTERNS[:5], NM(1, 3)], ids=identify)
@pytest.mark.parametrize("step", [30.0, 60.0, 80.0, 100.0, 120.0, 130.0, 200.0, 1000.0, 100000.0])
def test_scores_that_outgrow_the_first_reference(method: NM, step: float, engine: str):
    """Each block of keys has scores larger by ``step`` powers of two than the one before."""
    problem = grid(1, 1, 40, 200, 16, 16)
    problem.query[..., 0], problem.key[..., 0] = 1.0, (torch.arange(200) // 64 * step).bfloat16()
    check(problem, engine, method=method, scale=math.log(2))


@pytest.mark.parametrize("method", PATTERNS[:5], ids=identify)
def test_large_values_do_not_overflow(method: NM, engine: str):
    """Sums of weights far above 1 and of values near the largest float, whose mean is one of those again."""
    problem = grid(1, 1, 40, 200, 16, 16)
    problem.query[..., 0], problem.key[..., 0] = 1.0, (torch.arange(200) // 64 * 10).bfloat16()
    problem.value[:] = problem.value.clamp(-1, 1) * 2.0**126
    problem = replace(problem, method=method)
    exact, plain = reference_of(problem), reference_of(problem, lambda x: x)
    for sums in Sums:
        got = run(problem, engine, sums)
        assert error(got.out, exact.out) <= 2 * error(plain.out, exact.out) + 2.0**126 * 2.0**-8


@pytest.mark.parametrize("method", [*PATTERNS[:5], NM(3, 5)], ids=identify)
@pytest.mark.parametrize("dropout_p", [0.1, 0.5, 0.9])
def test_dropout_draws_the_definitions_pairs(method: NM, dropout_p: float, engine: str):
    check(grid(4, 2, 70, 90, 16, 24, batch=2), engine, method=method, dropout_p=dropout_p, seed=11, causal=True)


def test_dropped_values_are_not_touched(engine: str):
    problem = grid(2, 2, 70, 90, 16, 24, method=NM(1, 1), dropout_p=0.5, seed=2**40 + 3)
    problem.value[:, :, 41, 3] = math.nan
    kept = dropout.factors(problem.seed, 0.5, 1, 2, range(70), 90, problem.query.device)[..., 41] > 0
    assert torch.equal(run(problem, engine, Sums.EXACT).out[..., 3].isnan(), kept)


@pytest.mark.parametrize("method", PATTERNS[:5], ids=identify)
def test_random_scores(method: NM, engine: str):
    """Arithmetic on inexact scores: the kernel's own choice is held against the reference only where it is certain."""
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(1, 2, 320, 64, generator=generator) for _ in range(3))
    query *= torch.linspace(0.1, 8, 320).view(1, 1, -1, 1)
    problem = Problem(query.bfloat16(), key.bfloat16(), value.bfloat16(), method, scale=0.125)
    s = 0.125 * (problem.query.double() @ problem.key.double().mT)
    groups = s.unflatten(-1, (-1, method.m, method.stride)).sort(-2, descending=True).values
    gaps = groups[..., method.n - 1, :] - groups[..., method.n, :] if method.n < method.m else groups[..., 0, :] * 0 + 1
    certain = gaps.flatten(-2).min(-1).values > 2e-6 * s.abs().amax(-1)
    assert certain.float().mean() > 0.9
    exact, plain = reference_of(problem), reference_of(problem, lambda x: x)
    size = value.abs().max().item()
    for sums in Sums:
        got = run(problem, engine, sums)
        out, logsumexp = got.out[certain], got.logsumexp[certain]
        assert error(out, exact.out[certain]) <= 2 * error(plain.out[certain], exact.out[certain]) + size * 2.0**-8
        allowed = 2 * error(plain.logsumexp[certain], exact.logsumexp[certain])
        assert error(logsumexp, exact.logsumexp[certain]) <= allowed + (2.0**-8 if sums is Sums.ROUNDED else 4e-6)


@pytest.mark.parametrize("method", [*PATTERNS[:5], NM(1, 2, window=20, sinks=2), NM(3, 8)], ids=identify)
@pytest.mark.parametrize("q_len", [3, 300])
def test_threads_change_no_bit(method: NM, q_len: int, engine: str):
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(1, 4, q_len, 24, generator=generator).bfloat16()
    key, value = (torch.randn(1, 2, 700, 24, generator=generator).bfloat16() for _ in range(2))
    problem = Problem(query, key, value, method, causal=True)
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results.append(run(problem, engine))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("method", [*PATTERNS[:5], NM(3, 8)], ids=identify)
def test_permuted_queries_permute_the_output(method: NM, engine: str):
    """A query's bits do not depend on those beside it."""
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(1, 2, 150, 40, generator=generator).bfloat16() for _ in range(3))
    order = torch.randperm(150, generator=generator)
    straight = run(Problem(query, key, value, method), engine)
    permuted = run(Problem(query[:, :, order], key, value, method), engine)
    assert torch.equal(permuted.out, straight.out[:, :, order])
    assert torch.equal(permuted.logsumexp, straight.logsumexp[:, :, order])


@pytest.mark.parametrize("method", [*PATTERNS[:5], NM(3, 8)], ids=identify)
def test_parts_merge_by_logsumexp(method: NM, engine: str):
    """Whole groups are independent: parts of the keys give parts of the answer."""
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(1, 2, 160, 32, generator=generator).bfloat16() for _ in range(3))
    problem = Problem(query, key, value, method)
    whole = run(problem, engine)
    parts = [
        run(replace(problem, key=key[:, :, at], value=value[:, :, at]), engine) for at in (slice(0, 64), slice(64, 160))
    ]
    weights = torch.stack([part.logsumexp for part in parts]).softmax(0).unsqueeze(-1)
    merged = sum(weight * part.out.float() for weight, part in zip(weights, parts, strict=True))
    torch.testing.assert_close(merged, whole.out.float(), atol=0.02, rtol=0.0)
    merged = torch.stack([part.logsumexp for part in parts]).logsumexp(0)
    torch.testing.assert_close(merged, whole.logsumexp, atol=4e-6, rtol=1e-6)


@pytest.mark.parametrize("causal", [False, True])
def test_dense_is_sdpa(causal: bool, engine: str):
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(2, 3, 111, 64, generator=generator).bfloat16() for _ in range(3))
    want = torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=causal)
    got = run(Problem(query, key, value, NM(4, 4), causal=causal, scale=0.125), engine, Sums.ROUNDED)
    torch.testing.assert_close(got.out, want, atol=0.02, rtol=0.02)


def test_other_dtypes_and_larger_heads_are_refused(engine: str):
    problem = grid(1, 1, 4, 4, 8, 8)
    with pytest.raises(RuntimeError, match="out of its range"):
        run(replace(problem, query=problem.query.half()), engine)
    with pytest.raises(RuntimeError, match="out of its range"):
        run(grid(1, 1, 4, 4, 513, 8), engine)
