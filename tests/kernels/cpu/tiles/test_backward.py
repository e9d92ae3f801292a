"""The backward on tiles against the reference's gradients in float64."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from dynattn.methods import NM
from tests.covering import part
from tests.kernels.cpu.tiles import building
from tests.kernels.cpu.tiles.calling import Problem, check_gradients, grid, run_backward

PATTERNS = (
    NM(1, 1), NM(1, 2), NM(2, 4), NM(1, 2, stride=16), NM(2, 4, stride=16), NM(1, 2, window=9, sinks=3),
    NM(2, 4, stride=3), NM(3, 8), NM(2, 5, stride=51), NM(17, 32),
)  # fmt: skip
SHAPES = (  # heads, kv_heads, q_len, kv_len, head_dim, value_dim
    (1, 1, 1, 1, 1, 1), (2, 1, 5, 1, 20, 8), (2, 2, 63, 111, 32, 20), (4, 2, 111, 63, 33, 40), (1, 1, 40, 600, 80, 96),
    (1, 1, 150, 65, 64, 64),
)  # fmt: skip
FEW = [NM(1, 1), NM(1, 2), NM(2, 4, stride=16), NM(3, 8), NM(1, 2, window=9, sinks=3)]


def identify(value: object) -> str:
    return value.name if isinstance(value, NM) else str(value)


@pytest.mark.parametrize("number", range(len(PATTERNS)))
def test_gradients(number: int, engine: str):
    """Every pattern with every shape; causal in every other case."""
    for turn, shape in enumerate(SHAPES):
        check_gradients(grid(*shape), engine, method=PATTERNS[number], causal=(turn + number) % 2 == 0)


@pytest.mark.parametrize("method", FEW, ids=identify)
def test_wide_heads(method: NM, engine: str):
    for sizes in ((257, 511), (512, 300)):
        check_gradients(grid(2, 1, 30, 70, *sizes), engine, method=method, causal=True, scale=0.0625, dropout_p=0.2)


@pytest.mark.parametrize("method", FEW, ids=identify)
@pytest.mark.parametrize("kind", ["bool", "padding", "additive", "empty rows"])
def test_masks(method: NM, kind: str, engine: str):
    generator = torch.Generator().manual_seed(1)
    shape = {"bool": (2, 4, 70, 99), "padding": (2, 1, 1, 99), "additive": (4, 70, 99), "empty rows": (70, 99)}[kind]
    mask = torch.rand(shape, generator=generator) > 0.3
    if kind == "additive":
        mask = torch.randint(-2, 3, shape, generator=generator).float().masked_fill(~mask, -math.inf)
    if kind == "empty rows":
        mask[::3] = False
    check_gradients(grid(4, 2, 70, 99, 24, 32, batch=2), engine, method=method, mask=mask, causal=kind == "bool")


@pytest.mark.parametrize("method", FEW, ids=identify)
def test_scales_and_low_biases(method: NM, engine: str):
    for scale in (-0.3, 1e-3, 1e-40, 4.0):
        check_gradients(grid(2, 1, 40, 70, 16, 16), engine, method=method, scale=scale)
    mask = torch.zeros(1, 1, 40, 70)
    mask[..., 60:], mask[..., 3, :] = torch.finfo(torch.float32).min, -1e4
    check_gradients(grid(2, 1, 40, 70, 16, 16), engine, method=method, mask=mask)


def low_rows(method: NM = NM(1, 2), **options: Any) -> Problem:
    """Scores so large in size that nothing is left of the logarithm of their number, beside others."""
    problem = grid(2, 1, 40, 150, 16, 24, method=method, **options)
    mask = torch.zeros(1, 1, 40, 150)
    mask[..., 3, :], mask[..., 9, :], mask[..., 12, :] = torch.finfo(torch.float32).min, -1e9, 1e9
    mask[..., 9, :70] = -math.inf
    problem.query[:, :, [3, 9, 12]] = 0  # so that no bias rounds a score
    return replace(problem, mask=mask)


@pytest.mark.parametrize("method", FEW, ids=identify)
def test_rows_whose_logsumexp_is_rounded(method: NM, engine: str):
    check_gradients(low_rows(method), engine)
    check_gradients(low_rows(method, dropout_p=0.3, causal=True), engine)
    problem = grid(2, 1, 7, 600, 16, 24, method=method, scale=1.0)
    problem.query[:], problem.key[..., 0] = 0, 1
    problem.query[..., 0], problem.key[..., 100:103, 0] = 2.0**30, 1 + 2.0**-7
    check_gradients(problem, engine)
    check_gradients(problem, engine, query=-problem.query, causal=True)


@pytest.mark.parametrize("method", FEW, ids=identify)
def test_dropout(method: NM, engine: str):
    check_gradients(grid(4, 2, 61, 130, 16, 24, batch=2), engine, method=method, causal=True, dropout_p=0.3, seed=2**40)


@pytest.mark.parametrize("method", FEW[:3], ids=identify)
def test_blocks(method: NM, engine: str):
    for size in (16, 48, 100):
        shape = (1, 4, -(-70 // size), -(-150 // size))
        blocks = torch.rand(shape, generator=torch.Generator().manual_seed(7)) < 0.4
        blocks[:, -1, 0] = False
        problem = grid(4, 2, 70, 150, 20, 24, method=method, causal=True)
        check_gradients(problem, engine, blocks=blocks, block_size=size)


def test_strides(engine: str):
    problem = grid(4, 2, 70, 90, 32, 32, batch=3)
    query, key, value = (x.transpose(1, 2).contiguous().transpose(1, 2) for x in tensors(problem))
    check_gradients(problem, engine, query=query, key=key, value=value)
    check_gradients(problem, engine, query=query[:1].expand(3, -1, -1, -1), key=key[:1].expand(3, -1, -1, -1))


def test_few_heads_are_cut_into_parts(engine: str):
    """More keys than a section has: dQ is summed over the parts of a head, and over the sections of a part."""
    check_gradients(grid(2, 1, 40, 1700, 16, 8), engine)
    check_gradients(grid(9, 9, 7, 1100, 8, 8), engine, method=NM(2, 4), causal=True)


@pytest.mark.parametrize("method", [NM(1, 2), NM(2, 4, stride=16), NM(3, 8)], ids=identify)
def test_threads_change_no_bit(method: NM, engine: str):
    problem = at_random(2, 1, 50, 1100, 16, method, causal=True, dropout_p=0.2)
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results.append(run_backward(problem, engine)[1])
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("method", PATTERNS[1:5], ids=identify)
def test_the_choice_is_the_forwards_where_scores_nearly_tie(method: NM, engine: str):
    """Members of a group that differ by the sign of a small number: dV is nonzero where the output has weight."""
    kv_len = 192
    problem = at_random(1, 1, 64, kv_len, 64, method)
    groups = torch.arange(kv_len).view(-1, method.m, method.stride)
    key = problem.key.clone()
    for slot in range(1, method.m):
        key[:, :, groups[:, slot]] = key[:, :, groups[:, 0]]
        key[:, :, groups[:, slot], 5:9] += 2.0**-9 * torch.randn(key[:, :, groups[:, 0], 5:9].shape).sign().bfloat16()
    value = torch.eye(kv_len).view(1, 1, kv_len, kv_len).bfloat16()
    for at in range(0, 64, 8):
        one = replace(problem, query=problem.query[:, :, at : at + 1], key=key, value=value, scale=0.125)
        out, gradients = run_backward(one, engine)
        kept = out[0, 0, 0] > 0
        assert int(kept.sum()) == kv_len * method.n // method.m
        assert torch.equal(gradients.scores[0, 0, 0] != 0, kept)


@pytest.mark.parametrize("method", FEW, ids=identify)
def test_nan_and_infinity_stay_where_they_are_kept(method: NM, engine: str):
    problem = grid(2, 1, 50, 140, 32, 16, method=method)
    mask = torch.ones(1, 1, 50, 140, dtype=torch.bool)
    mask[..., 40:], mask[..., 20:, 30] = False, False
    clean = run_backward(replace(problem, mask=mask), engine)[1]
    for poison in (math.nan, math.inf):
        key, value = problem.key.clone(), problem.value.clone()
        key[:, :, 40:], value[:, :, 40:] = poison, poison  # behind a mask
        got = run_backward(replace(problem, key=key, value=value, mask=mask), engine)[1]
        for a, b in zip(got, clean, strict=True):
            torch.testing.assert_close(a, b, rtol=2.0**-7, atol=2.0**-6)
        query = problem.query.clone()
        emptied = mask.clone()
        query[:, :, 3], emptied[:, :, 3] = poison, False  # in a query that may attend nothing, beside those that may
        got = run_backward(replace(problem, query=query, mask=emptied), engine)[1]
        right = run_backward(replace(problem, mask=emptied), engine)[1]
        for a, b in zip(got, right, strict=True):
            torch.testing.assert_close(a, b, rtol=2.0**-7, atol=2.0**-6)
    key = problem.key.clone()
    key[0, 0, 30, 3] = math.nan  # seen by the first 20 queries only
    got = run_backward(replace(problem, key=key, mask=mask), engine)[1]
    assert got.query[:, :, :20].isnan().all()
    assert not got.query[:, :, 20:].isnan().any()
    assert got.key[0, 0, 30].isnan().all()
    assert not got.key[0, 0, 40:].any()
    assert got.value[0, 0, 30].isnan().all()


@pytest.mark.parametrize("shape", [(0, 2, 5, 5), (1, 2, 0, 5), (1, 2, 5, 0)])
def test_empty(shape: tuple, engine: str):
    batch, heads, q_len, kv_len = shape
    query, key = (torch.randn(batch, heads, length, 8).bfloat16() for length in (q_len, kv_len))
    for gradient in run_backward(Problem(query, key, key, NM(2, 4)), engine)[1]:
        assert not gradient.any()


needs_compiler = pytest.mark.skipif(
    building.unavailable_reason() is not None, reason=str(building.unavailable_reason())
)


@needs_compiler
def test_amx_gives_the_portable_engines_bits():
    """On emulated tiles, with the same vectors as the portable engine."""
    for method in (NM(1, 1), NM(1, 2), NM(2, 4, stride=16)):
        problem = at_random(2, 1, 70, 150, 40, method, causal=True, dropout_p=0.2)
        want, got = (
            run_backward(problem, engine)[1] for engine in ("tiles-portable", building.library(*building.EMULATED))
        )
        assert all(torch.equal(a, b) for a, b in zip(want, got, strict=True))


@needs_compiler
def test_avx512_is_the_definition():
    """Both engines with emulated vectors of AVX-512, which round a multiply-add once."""
    for options in (building.EMULATED_AVX512BF16, building.EMULATED_AMX_AVX512):
        for method in (NM(1, 2), NM(3, 8)):
            check_gradients(grid(2, 1, 50, 90, 24, 40), building.library(*options), method=method, causal=True)


_LOW = {name: getattr(low_rows(), name) for name in ("query", "key", "value", "mask")}
BUGS = [
    ("tiles/gradients.h", "mul(weight, sub(d_weight, delta))", "mul(weight, d_weight)", {}),
    ("tiles/gradients.h", "if (!takes_part) leave_out(rows, t);", "", {"causal": True}),
    ("tiles/gradients.h", "select(left, mul(d_weight, keep), none)", "mul(d_weight, keep)", {"dropout_p": 0.5}),
    ("tiles/backward_plan.h", "                 forward.scale);", "1.0f);", {}),
    ("tiles/backward.h", "store(sums + i, add(load_lanes(sums + i),", "store(sums + i, max(load_lanes(sums + i),",
     {"key": grid(1, 1, 1, 1200, 16, 24).key, "value": grid(1, 1, 1, 1200, 16, 24).value}),
    ("tiles/gradients.h", "s.reference[i] = log2f(sums.sum[at]);", "s.reference[i] = 0.0f;", _LOW),
    ("tiles/forward.h", "plan.sums.sum[at] = sums[3][lane] * exp2f(sums[1][lane]);",
     "plan.sums.sum[at] = sums[4][lane];", _LOW),
]  # fmt: skip


@needs_compiler
@pytest.mark.parametrize("number", part(range(len(BUGS)), 2, str))
def test_a_bug_is_seen(number: int):
    file, right, wrong, changes = BUGS[number]
    problem = grid(2, 1, 140, 150, 16, 24, causal=False)
    check_gradients(problem, "tiles-portable", **changes)
    with pytest.raises(AssertionError, match="gradient of"):
        check_gradients(problem, building.with_bug(file, right, wrong), **changes)


def at_random(
    heads: int, kv_heads: int, q_len: int, kv_len: int, head_dim: int, method: NM, **options: object
) -> Problem:
    generator = torch.Generator().manual_seed(2)
    query = torch.randn(1, heads, q_len, head_dim, generator=generator).bfloat16()
    key, value = (torch.randn(1, kv_heads, kv_len, head_dim, generator=generator).bfloat16() for _ in range(2))
    return Problem(query, key, value, method, **options)  # type: ignore[arg-type]


def tensors(problem: Problem) -> tuple[Tensor, Tensor, Tensor]:
    return problem.query, problem.key, problem.value
