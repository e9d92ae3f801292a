"""The CUDA kernels, run on the emulator, against the definition: sizes, masks, ties, groups, strides, NaN."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from dynattn import NM
from dynattn.kernels.cuda import emulator, launch
from dynattn.kernels.pattern import Pattern
from dynattn.methods.nm import choose
from dynattn.reference import pairs as reference
from tests.covering import part
from tests.kernels.cuda import emulation
from tests.kernels.cuda.emulation import SCHEDULES, allowed, bias, check, grid, normal, padding, run, simple

pytestmark = pytest.mark.skipif(emulator.unavailable_reason() is not None, reason=str(emulator.unavailable_reason()))

ONE, TWO = NM(1, 2), NM(2, 4)
ONE_APART, TWO_APART = NM(1, 2, stride=16), NM(2, 4, stride=16)


LENGTHS = [(1, 2), (1, 148), (16, 64), (63, 110), (64, 62), (65, 4), (130, 192), (384, 66)]
ODD_LENGTHS = [(1, 1), (1, 3), (5, 63), (63, 111), (129, 65)]


@pytest.mark.parametrize("method", [ONE, TWO], ids=lambda method: method.name)
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("q_len", "kv_len"), LENGTHS + ODD_LENGTHS)
def test_lengths(q_len: int, kv_len: int, causal: bool, method: NM) -> None:
    problem = simple("mma2", q_len, kv_len, method=method, causal=causal, seed=q_len + kv_len)
    check(problem, run(problem))


@pytest.mark.parametrize(
    ("kernel", "head_dim", "value_dim", "method", "dtype"),
    part(
        [
            ("mma1", 64, 64, TWO, torch.float16),
            ("mma1", 8, 24, ONE, torch.bfloat16),
            ("mma2", 32, 32, TWO, torch.float16),
            ("mma2", 40, 64, ONE, torch.float16),
            ("mma2", 80, 96, TWO, torch.bfloat16),
            ("mma1", 128, 120, ONE, torch.float16),
            ("mma2", 128, 128, TWO, torch.bfloat16),
            ("mma1", 192, 128, TWO, torch.bfloat16),
            ("mma1", 256, 256, ONE, torch.bfloat16),
            ("mma1", 64, 256, TWO, torch.float16),
        ],
        2,
    ),
)
def test_head_dims(kernel: str, head_dim: int, value_dim: int, method: NM, dtype: torch.dtype) -> None:
    fields = {"value_dim": value_dim, "method": method, "dtype": dtype, "causal": True}
    problem = simple(kernel, 70, 134, head_dim, **fields)
    result = run(problem)
    check(problem, result)
    assert result.counts.bank_conflicts == 0
    random = replace(
        problem,
        query=normal(1, 1, 70, head_dim, seed=1, dtype=dtype), key=normal(1, 1, 134, head_dim, seed=2, dtype=dtype),
    )  # fmt: skip
    check(random, run(random))


@pytest.mark.parametrize("method", [ONE_APART, TWO_APART], ids=lambda method: method.name)
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("q_len", "kv_len"), [(1, 1), (5, 63), (65, 33), (63, 111), (130, 192)])
def test_strided_groups(q_len: int, kv_len: int, causal: bool, method: NM) -> None:
    problem = simple("mma2", q_len, kv_len, method=method, causal=causal, seed=q_len + kv_len)
    check(problem, run(problem))


@pytest.mark.parametrize("method", [NM(1, 2, stride=2), NM(2, 4, stride=4)], ids=lambda m: m.name)
def test_other_strides(method: NM) -> None:
    problem = simple("mma1", 70, 141, 32, method=replace(method, window=5, sinks=3), causal=True, aux=True)
    check(problem, run(problem))


def test_strided_groups_of_another_head_dim() -> None:
    problem = simple("mma2", 70, 134, 32, method=TWO_APART, dtype=torch.float16)
    result = run(problem)
    check(problem, result)
    assert result.counts.bank_conflicts == 0


@pytest.mark.parametrize(
    ("method", "mask", "causal"),
    [(NM(1, 1), None, True), (NM(4, 4), None, False), (NM(1, 1), "bool", False), (NM(1, 1), "padding", True)],
)
def test_dense(method: NM, mask: str | None, causal: bool) -> None:
    """What SDPA cannot be asked for: kept mass, rows that a mask empties, causal with q_len != kv_len."""
    fields = {"method": method, "aux": True, "causal": causal, "batch": 2, "heads": 4}
    problem = simple("mma1", 50, 102, 32, kv_heads=2, mask=mask and MASKS[mask](torch.bfloat16), **fields)
    result = run(problem)
    check(problem, result)
    assert result.kept_mass is not None
    assert (result.kept_mass == 1).all()


MASKS: dict[str, Callable[[torch.dtype], torch.Tensor]] = {
    "bool": lambda _: allowed(2, 4, 50, 102, seed=1),
    "bool of heads": lambda _: allowed(4, 1, 102, seed=2).expand(2, 4, 50, 102),
    "bool, keys apart": lambda _: allowed(2, 1, 102, 50, seed=3).transpose(2, 3),
    "bool, unaligned": lambda _: allowed(2, 1, 50, 103, seed=4)[..., 1:],
    "few": lambda _: allowed(2, 4, 50, 102, seed=5, share=0.02),
    "padding": lambda _: padding(2, 102),
    "float32": lambda _: bias(2, 1, 50, 102, seed=6, dtype=torch.float32),
    "float32 of keys": lambda _: bias(1, 1, 1, 102, seed=7, dtype=torch.float32),
    "element": lambda dtype: bias(1, 4, 50, 102, seed=8, dtype=dtype),
    "element, unaligned": lambda dtype: bias(50, 107, seed=9, dtype=dtype)[:, 5:],
    "float32, very low": lambda _: allowed(2, 1, 50, 102, seed=10).float().sub(1) * torch.finfo(torch.float32).max,
}


@pytest.mark.parametrize(
    ("mask", "method"),
    part(
        [
            *((mask, method) for mask in MASKS for method in (ONE, replace(TWO, window=7, sinks=3))),
            *((mask, replace(ONE_APART, window=7, sinks=3)) for mask in ("bool", "bool, keys apart", "float32")),
        ],
        3,
    ),
)
def test_masks_and_aux(mask: str, method: NM) -> None:
    fields = {"method": method, "aux": True, "causal": mask in ("bool", "float32"), "batch": 2, "heads": 4}
    problem = simple("mma1", 50, 102, 32, kv_heads=2, mask=MASKS[mask](torch.bfloat16), **fields)
    check(problem, run(problem))


def test_the_lowest_bias_does_not_forbid() -> None:
    lowest = torch.full((50, 102), torch.finfo(torch.float32).min)
    problem = simple("mma1", 50, 102, 32, mask=lowest)
    check(problem, run(problem))


@pytest.mark.parametrize(
    ("kernel", "fields"),
    [
        ("mma2", {"method": ONE, "causal": True}),
        ("mma1", {"method": TWO, "dtype": torch.float16, "heads": 2, "scale": -0.125}),
        ("mma2", {"method": NM(1, 2, window=20, sinks=3), "aux": True}),
    ],
)
def test_scores_that_are_very_large(kernel: str, fields: dict) -> None:
    """Their exponents round by up to 64, and 2^64 is no number of 16 bits."""
    problem = emulation.with_large_scores(simple(kernel, 70, 134, **fields))
    check(problem, run(problem))


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("window", "sinks"), [(1, 0), (0, 3), (20, 4), (500, 0), (0, 500), (2**31 - 1, 2**31 - 1)])
def test_window_and_sinks(window: int, sinks: int, causal: bool) -> None:
    problem = simple("mma2", 150, 300, method=NM(1, 2, window, sinks), causal=causal, aux=True)
    check(problem, run(problem))


def test_window_costs_only_the_tiles_it_touches() -> None:
    plain = run(simple("mma2", 128, 1024, causal=True)).counts
    band = run(simple("mma2", 128, 1024, causal=True, method=NM(1, 2, window=64))).counts
    touched = 4 * 3 + 2  # of 4 warps and 15 or 16 tiles: the diagonal's 2 each, and those up to 63 keys before
    assert band.products == plain.products
    assert 0 < band.sparse_products - plain.sparse_products <= touched * 2 * 2 * 8


@pytest.mark.parametrize(("heads", "kv_heads"), [(6, 2), (4, 1), (3, 3)])
def test_groups_of_heads(heads: int, kv_heads: int) -> None:
    problem = simple("mma2", 20, 70, heads=heads, kv_heads=kv_heads, batch=2, method=TWO, causal=True)
    check(problem, run(problem))


def test_strides() -> None:
    problem = simple("mma2", 70, 134, heads=4, kv_heads=2, batch=2, method=TWO)
    right = run(problem)
    moved = lambda x: x.transpose(1, 2).contiguous().transpose(1, 2)  # noqa: E731
    wide = lambda x: torch.cat([x, x.new_full(x.shape, math.nan)], -1)[..., : x.shape[-1]]  # noqa: E731
    narrow = lambda x: torch.cat([x.new_full((*x.shape[:3], 1), math.nan), x], -1)[..., 1:]  # noqa: E731
    for change in (moved, wide, narrow):
        changed = replace(problem, query=change(problem.query), key=change(problem.key), value=change(problem.value))
        assert changed.query.stride() != problem.query.stride()
        assert torch.equal(run(changed).out, right.out)
    one = replace(problem, key=problem.key[:1, :1], value=problem.value[:1, :1])
    one = replace(one, key=one.key.expand_as(problem.key), value=one.value.expand_as(problem.value))
    check(one, run(one))


def test_nothing_to_do() -> None:
    problem = simple("mma2", 5, 8, batch=2)
    none = replace(problem, query=problem.query[:0], key=problem.key[:0], value=problem.value[:0])
    assert run(none).launch.blocks == 0
    assert run(replace(problem, query=problem.query[:, :, :0])).launch.blocks == 0
    no_keys = replace(problem, key=problem.key[:, :, :0], value=problem.value[:, :, :0])
    check(no_keys, run(no_keys))


@pytest.mark.parametrize("method", [ONE, TWO, ONE_APART, TWO_APART], ids=lambda m: m.name)
def test_chosen_keys(method: NM) -> None:
    """Values that name their key show the choice itself: exactly N of every M, ties to the lower index."""
    problem = simple("mma1", 64, 64, 32, value_dim=64, method=method, scale=-0.125)
    coarse = {
        name: grid(1, 1, 64, 32, seed=seed, dtype=torch.bfloat16, spread=1)
        for seed, name in enumerate(("query", "key"))
    }
    problem = replace(problem, **coarse, value=torch.eye(64, dtype=torch.bfloat16).view(1, 1, 64, 64))
    s = reference.scores(problem.query, problem.key, None, False, problem.scale)
    s = s / 1024  # of rounded weights none is 0
    shown = run(replace(problem, scale=problem.scale / 1024)).out > 0
    assert torch.equal(shown, choose(s, method))
    groups = s.unflatten(-1, (-1, method.m, method.stride)).transpose(-1, -2)
    ties = (groups.unsqueeze(-1) == groups.unsqueeze(-2)).sum((-1, -2)) > method.m
    assert ties.float().mean() > 0.05, "the case must have ties"


@pytest.mark.parametrize("method", [ONE, TWO, NM(1, 2, window=9), TWO_APART], ids=lambda method: method.name)
def test_every_schedule_gives_the_same_bits(method: NM) -> None:
    problem = simple("mma2", 130, 300, method=method, causal=True)
    results = [run(problem, schedule) for schedule in SCHEDULES]
    check(problem, results[0])
    for result in results[1:]:
        assert torch.equal(result.out, results[0].out)
        assert torch.equal(result.logsumexp, results[0].logsumexp)


def test_half_of_the_second_product_is_done() -> None:
    counts = run(simple("mma2", 128, 256)).counts
    warps, tiles, row_tiles = 4, 256 // 64, 2
    assert counts.products == warps * tiles * row_tiles * 8 * (64 // 16)
    assert counts.sparse_products == warps * tiles * row_tiles * (64 // 32) * 8  # dense products would be twice these


def test_scores_that_grow_along_the_keys() -> None:
    """The running maximum moves at every tile, by more and by less than the lazy step."""
    problem = simple("mma2", 64, 512, method=TWO)
    growth = torch.cat([torch.linspace(0, 1, 256), torch.linspace(1, 12, 256)]).view(1, 1, 512, 1)
    problem = replace(problem, query=problem.query.abs(), key=(problem.key.abs() * growth).bfloat16())
    check(problem, run(problem))
    check(falling := replace(problem, key=problem.key.flip(2)), run(falling))


@pytest.mark.parametrize("method", [ONE, TWO, NM(1, 2, window=3)], ids=lambda method: method.name)
@pytest.mark.parametrize("where", ["query", "key"])
def test_nan_reaches_its_rows_only(where: str, method: NM) -> None:
    problem = simple("mma2", 40, 70, method=method, causal=True)
    changed = replace(problem, **{where: getattr(problem, where).clone()})
    getattr(changed, where)[0, 0, 45 if where == "key" else 7, 3] = math.nan
    result, right = run(changed), emulation.expected(changed)
    poisoned = right.out.isnan()
    assert poisoned.any()
    assert not poisoned.all()
    assert torch.equal(result.out.isnan(), poisoned)
    assert torch.equal(result.logsumexp.isnan(), right.logsumexp.isnan())
    torch.testing.assert_close(result.out[~poisoned].double(), right.out[~poisoned], rtol=0.02, atol=0.02)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(
    "method", [ONE, TWO, NM(1, 2, window=3, sinks=2), NM(2, 4, window=3, stride=16)], ids=lambda method: method.name
)
def test_values_reach_only_the_rows_that_keep_their_key(method: NM, bad: float) -> None:
    mask = torch.ones(1, 1, 40, 70, dtype=torch.bool)
    mask[..., 10:20] = False  # unwritten slots
    problem = simple("mma1", 40, 70, 32, method=method, causal=True, mask=mask)
    value = problem.value.clone()
    value[0, 0, 10:20] = bad
    value[0, 0, 60, ::3] = bad
    problem = replace(problem, value=value)
    result, right = run(problem), emulation.expected(problem)
    assert 0 < right.out.isfinite().float().mean() < 1
    assert torch.equal(result.out.isfinite(), right.out.isfinite())
    finite = right.out.isfinite()
    torch.testing.assert_close(result.out[finite].double(), right.out[finite], rtol=0.02, atol=0.02)
    assert result.logsumexp.isfinite().all()


def test_parts_of_the_keys_merge_by_logsumexp() -> None:
    problem = simple("mma2", 30, 192, method=TWO)
    whole = run(problem)
    parts = [replace(problem, key=k, value=v) for k, v in zip(
        problem.key.split(100, 2), problem.value.split(100, 2), strict=True
    )]  # fmt: skip
    results = [run(part) for part in parts]
    weights = torch.stack([result.logsumexp for result in results]).softmax(0).unsqueeze(-1)
    merged = sum(weight * result.out.float() for weight, result in zip(weights, results, strict=True))
    torch.testing.assert_close(merged, whole.out.float(), rtol=0.01, atol=0.01)


def test_the_emulator_refuses_too_little_shared_memory() -> None:
    problem = simple("mma2", 64, 64)
    out, lse = torch.empty_like(problem.query), torch.empty(1, 1, 64)
    prepared = launch.prepare(
        problem.query, problem.key, problem.value, None, out, lse, None, None, None,
        Pattern.of(NM(1, 2), False, 1.0), emulation.device("mma2"),
    )  # fmt: skip

    class Stingy:
        def __init__(self, variant):
            self.variant = variant

        def __getattr__(self, name):
            return getattr(self.variant, name)

        shared_bytes = 8192

    with pytest.raises(emulator.EmulationError, match="beyond the 8192 bytes"):
        emulator.run(prepared._replace(variant=Stingy(prepared.variant)))
