"""A window beside N:M, beside rows and beside blocks, by every build of the kernels, against the definition."""

from __future__ import annotations

import math
from itertools import product

import pytest
import torch
from torch import Tensor

import dynattn
from dynattn.kernels import cpu
from dynattn.methods import parse
from tests.whole_numbers import inputs

pytestmark = pytest.mark.skipif(not cpu.is_available(), reason=cpu.unavailable_reason() or "")

BUILDS = [name for name in ("avx512", "avx2", "neon", "portable") if cpu.isa_available(name)]
ENGINES = [name for name in cpu.TILE_ENGINES if cpu.isa_available(name)]
GROUPS = (
    "nm-1-2&window-20-s3", "nm-2-4&window-33", "nm-2-4-x2&window-16-s5", "nm-1-2-x16&window-40-s1",
    "nm-2-5-w9-s2&window-30-s1", "nm-1-2+window-20-s3", "nm-2-4-w30+window-7-s9",
)  # fmt: skip
ROWS = (
    "topk-5+window-9-s4", "topk-0.3-f0&window-33-s2", "threshold-0.03+window-9", "threshold-0.03&window-70-s4",
    "mass-0.7+window-16-s4", "mass-0.81&window-40",
)  # fmt: skip
BLOCKS = (
    "blocktopk-0.25-b16-w0-s0+window-9-s4", "blocktopk-0.5-b16-w0-s0&window-24-s3", "blockmass-0.6-b32-w0-s0+window-20",
    "nm-1-2&blocktopk-0.5-b16-w0-s0+window-9-s2", "nm-1-2-x8&blocktopk-0.5-b16-w0-s0&window-40-s3",
)  # fmt: skip
LENGTHS = [(1, 1), (17, 80), (64, 17), (130, 130), (63, 130), (5, 300), (1, 200)]
MASKS = ["none", "padding", "by query", "added"]


def masked(kind: str, q_len: int, kv_len: int) -> Tensor | None:
    generator = torch.Generator().manual_seed(2)
    return {
        "none": None,
        "padding": torch.arange(kv_len) >= torch.tensor([0, kv_len // 32 * 16])[:, None, None, None],
        "by query": torch.rand(2, 4, q_len, kv_len, generator=generator) < 0.6,
        "added": torch.randint(-2, 3, (q_len, kv_len), generator=generator).float(),
    }[kind]


def agrees(
    tensors: list[Tensor], name: str, backend: str, close: float, trains: bool = True, **options: object
) -> None:
    """Output, certificate and gradients of a backend are those of the definition in float64."""
    found = []
    for run, dtype in ((backend, tensors[0].dtype), ("reference", torch.float64)):
        query, key, value = (x.to(dtype).requires_grad_() for x in tensors)
        out, aux = dynattn.attention(
            query, key, value, parse(name), scale=0.5, backend=run, return_aux=True, **options,  # pyright: ignore
        )  # fmt: skip
        loss = out.double().sin().sum() + aux.logsumexp.clamp(min=-1e3).double().square().sum() / 100
        gradients = torch.autograd.grad(loss, (query, key, value)) if trains else ()
        found.append([x.detach().double() for x in (out, aux.logsumexp, aux.kept_mass, aux.density, *gradients)])
    for got, want in zip(*found, strict=True):
        torch.testing.assert_close(got, want, rtol=close, atol=close)


@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
@pytest.mark.parametrize("causal", [False, True])
def test_definition(lengths: tuple[int, int], causal: bool) -> None:
    for at, (name, kind) in enumerate(product(GROUPS + ROWS, MASKS)):
        if at % 2 == (lengths[0] + causal) % 2:
            agrees(inputs(*lengths), name, "cpu", 2e-5, causal=causal, attn_mask=masked(kind, *lengths))


@pytest.mark.parametrize("lengths", [(128, 128), (32, 160), (4, 96)], ids=str)
def test_beside_blocks(lengths: tuple[int, int]) -> None:
    for name, causal, kind in product(BLOCKS, (False, True), MASKS[:2]):
        agrees(inputs(*lengths), name, "cpu", 2e-5, causal=causal, attn_mask=masked(kind, *lengths))


@pytest.mark.parametrize("build", BUILDS)
def test_every_build(build: str) -> None:
    for name in GROUPS[::2] + ROWS[::2] + BLOCKS[::3]:
        agrees(inputs(96, 96), name, f"cpu-{build}", 2e-5, causal=True)


@pytest.mark.parametrize("engine", ENGINES)
def test_every_engine(engine: str) -> None:
    for name, (causal, kind) in product(GROUPS + BLOCKS, ((True, "none"), (False, "padding"))):
        mask = masked(kind, 96, 128)
        agrees(inputs(96, 128, torch.bfloat16), name, f"cpu-{engine}", 0.03, causal=causal, attn_mask=mask)
    for name in GROUPS[::2]:
        mask = masked("added", 40, 100)
        agrees(inputs(40, 100, torch.bfloat16), name, f"cpu-{engine}", 0.03, attn_mask=mask)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_error_is_that_of_the_same_arithmetic(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(1, 4, 200, 32, generator=generator).to(dtype) for _ in range(3))
    for name in (GROUPS[0], GROUPS[5], ROWS[0], ROWS[1]):
        exact, plain = (
            dynattn.attention(q, k, v, parse(name), causal=True, backend="reference")
            for q, k, v in ([x.to(kind) for x in (query, key, value)] for kind in (torch.float64, dtype))
        )
        got = dynattn.attention(query.mT.contiguous().mT, key, value, parse(name), causal=True)
        assert (got.double() - exact).abs().max() <= 2 * (plain.double() - exact).abs().max() + 1e-6


@pytest.mark.parametrize("name", [GROUPS[0], GROUPS[5], ROWS[0], ROWS[1], BLOCKS[0]])
def test_dropout_draws_what_the_definition_draws(name: str) -> None:
    agrees(inputs(64, 64), name, "cpu", 2e-5, causal=True, dropout_p=0.3, seed=5)


CUT = ("nm-1-2&window-16-s2", "nm-2-5&window-16-s2", "topk-0.9-f0&window-16-s2", "mass-0.999999&window-16-s2")


@pytest.mark.parametrize("name", CUT)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dropped_scores_may_be_larger_by_any_amount(name: str, dtype: torch.dtype) -> None:
    # keys 3, 5 and 40 outweigh all that windows far from them hold by more than floats can tell
    query, key, value = inputs(100, 100, dtype)
    query[..., 0], key[..., 0] = 1, 0
    key[:, :, [3, 5, 40], 0] = 4096
    trains = dtype == torch.float32  # a gradient in bfloat16 has the rounding of these keys
    close = 2e-5 if trains else 0.03
    for run in ("cpu", *(f"cpu-{engine}" for engine in ENGINES if dtype == torch.bfloat16 and name[0] == "n")):
        agrees([query, key, value], name, run, close, trains, causal=True)
        agrees([query, key, value], name, run, close, trains)
        agrees([query[:, :, -4:], key, value], name, run, close, trains)


@pytest.mark.parametrize("name", [*CUT, "topk-9+window-16-s2", "nm-1-2+window-16-s2"])
@pytest.mark.parametrize("odd", [math.nan, math.inf])
def test_what_is_not_kept_reaches_no_output(name: str, odd: float) -> None:
    for dtype, q_len in ((torch.float32, 100), (torch.float32, 4), (torch.bfloat16, 100)):
        query, key, value = inputs(q_len, 100, dtype)
        query[..., 0] = 1
        key[:, :, [30, 31, 33], 0] = odd  # neighbours compete in a group, and a window ends between them
        exact = [x.double().requires_grad_() for x in (query, key, value)]
        given = [x.clone().requires_grad_() for x in (query, key, value)]
        want, got = (
            dynattn.attention(q, k, v, parse(name), causal=True, return_aux=True, backend=run)
            for (q, k, v), run in ((exact, "reference"), (given, "cpu"))
        )
        assert torch.equal(got[0].isnan(), want[0].isnan())
        assert torch.equal(got[1].logsumexp.isnan(), want[1].logsumexp.isnan())
        assert torch.equal(got[1].kept_mass.isnan(), want[1].kept_mass.isnan())
        finite = ~want[0].isnan()
        torch.testing.assert_close(got[0].double()[finite], want[0][finite], rtol=0.03, atol=0.03)
        if q_len == 100:  # queries before key 30, and for most methods those that have left it behind
            assert finite.any()
            assert not finite.all()
            d_want, d_got = (
                torch.autograd.grad(x[0][finite].sin().sum(), y)[0] for x, y in ((want, exact), (got, given))
            )
            rows = finite.all(-1)
            torch.testing.assert_close(d_got.double()[rows], d_want[rows], rtol=0.03, atol=0.03)


def test_many_texts() -> None:
    query, key, value = (x[0].transpose(0, 1) for x in inputs(90, 90))
    starts = torch.tensor([0, 17, 17, 90], dtype=torch.int32)
    for name in (GROUPS[0], ROWS[0]):
        method = parse(name)
        out = dynattn.varlen_attention(
            query, key, value, method, cu_seq_q=starts, cu_seq_k=starts, max_q=73, max_k=73, causal=True
        )
        for start, end in ((0, 17), (17, 90)):
            q, k, v = (x[start:end].transpose(0, 1).unsqueeze(0) for x in (query, key, value))
            want = dynattn.attention(q, k, v, method, causal=True, backend="reference")
            torch.testing.assert_close(out[start:end], want[0].transpose(0, 1), rtol=1e-5, atol=1e-5)
