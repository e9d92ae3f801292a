"""The kernel that skips by running maxima, against the definition: what it keeps, and what it makes of it."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

import dynattn
from dynattn import NM, BlockMass, BlockSkip, BlockTopK
from dynattn.kernels import cpu
from dynattn.kernels.pattern import Pattern
from dynattn.methods import Rows
from dynattn.ops.blocks import block_attention
from dynattn.reference import pairs as reference
from tests.kernels.cpu.masks import masks

pytestmark = pytest.mark.skipif(not cpu.is_available(), reason=cpu.unavailable_reason() or "")

MARGIN = 1.3  # no difference of the scores below
ALONE, INSIDE = BlockSkip(MARGIN), BlockSkip(MARGIN, BlockTopK(0.4, 16))
SHAPES = [  # heads, kv_heads, q_len, kv_len, head_dim, value_dim
    (1, 1, 1, 1, 1, 1),
    (2, 1, 7, 63, 8, 8),
    (4, 2, 65, 111, 20, 36),
    (1, 1, 130, 64, 64, 64),
    (2, 2, 13, 257, 32, 80),
    (1, 1, 5, 129, 5, 256),
    (1, 1, 20, 300, 260, 257),
    (4, 2, 1, 150, 24, 40),
    (2, 1, 200, 190, 16, 24),
]


def run(
    isa: str, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, causal: bool,
    method: BlockSkip = ALONE,
) -> tuple[Tensor, ...]:  # fmt: skip
    """The output, the logsumexp, and the pairs that the kernel says it kept."""
    out, logsumexp, *_, blocks = block_attention(
        query, key, value, mask, None, method.name, causal, 0.5, 0.0, False, True, f"cpu-{isa}"
    )
    kept = blocks.repeat_interleave(8, 2).repeat_interleave(16, 3)[:, :, : query.shape[2], : key.shape[2]]
    return out, logsumexp, kept


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("causal", [False, True])
def test_definition(shape: tuple[int, ...], causal: bool, isa: str, grid: Any) -> None:
    query, key, value = grid(*shape)
    q_len, kv_len = shape[2:4]
    method, dropped = BlockSkip(MARGIN), 0
    for mask in masks(q_len, kv_len):
        out, logsumexp, kept = run(isa, query, key, value, mask, causal)
        s = reference.scores(query, key, mask, causal, 0.5, kv_len - q_len)
        want = reference.select(s, method, query, key, kv_len - q_len, 0.5)
        allowed = s != -math.inf
        assert torch.equal(kept & allowed, want)
        exact = reference.attend(query.double(), key.double(), value.double(), method, mask, causal, 0.5, kept=want)
        torch.testing.assert_close(out.double(), exact.out, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(logsumexp.double(), exact.logsumexp, rtol=1e-5, atol=1e-5)
        dropped += int((allowed & ~want).sum())
    assert dropped or kv_len < 2 * 16 or q_len > kv_len


@pytest.mark.parametrize("shape", [shape for shape in SHAPES if max(shape[2:]) < 256], ids=str)
@pytest.mark.parametrize("causal", [False, True])
def test_definition_inside_of_kept_blocks(shape: tuple[int, ...], causal: bool, isa: str, grid: Any) -> None:
    """Blocks within a tile of 64 keys, as large, larger, and across the ends of tiles."""
    query, key, value = grid(*shape)
    q_len, kv_len = shape[2:4]
    unseen = skipped = 0
    for size, masked in ((16, True), (48, False), (64, True), (80, False), (128, False)):
        among = BlockTopK(0.4, size, window=1, sinks=0)
        method = BlockSkip(MARGIN, among)
        mask = torch.arange(kv_len) != kv_len // 3 if masked else None
        out, logsumexp, kept = run(isa, query, key, value, mask, causal, method)
        s = reference.scores(query, key, mask, causal, 0.5, kv_len - q_len)
        want, seen = (reference.select(s, each, query, key, kv_len - q_len, 0.5) for each in (method, among))
        allowed = s != -math.inf
        assert torch.equal(kept & allowed, want)
        exact = reference.attend(query.double(), key.double(), value.double(), method, mask, causal, 0.5, kept=want)
        torch.testing.assert_close(out.double(), exact.out, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(logsumexp.double(), exact.logsumexp, rtol=1e-5, atol=1e-5)
        unseen, skipped = unseen + int((allowed & ~seen).sum()), skipped + int((seen & ~want).sum())
    assert (unseen and skipped) or kv_len < 100


def test_dropped_blocks_are_not_looked_at(isa: str, grid: Any) -> None:
    """NaN in their keys and values touches nothing; as bad as that in a kept one, it reaches the rows that keep it."""
    query, key, value = grid(1, 1, 40, 150, 20, 12)
    blocks = torch.rand(1, 1, 3, 10, generator=torch.Generator().manual_seed(0)) < 0.5
    blocks[..., 4], blocks[..., 7], blocks[..., 9] = False, torch.tensor([True, False, False]), True
    given = blocks.repeat_interleave(16, 2)[:, :, :40].repeat_interleave(16, 3)[..., :150]
    key[:, :, 64:80], value[:, :, 64:80], key[:, :, 115] = math.nan, math.nan, math.nan
    out, logsumexp = torch.full((1, 1, 40, 12), math.nan), torch.full((1, 1, 40), math.nan)
    kept = torch.zeros(1, 1, 5, 10, dtype=torch.bool)
    cpu.skip_forward(
        query, key, value, None, out, logsumexp, kept, MARGIN, Pattern.of(NM(1, 1), False, 0.5), isa, blocks=blocks,
        block_size=16,
    )  # fmt: skip
    s = reference.scores(query, key, given, False, 0.5, 110)
    want = BlockSkip(MARGIN).choose(s, Rows(query, key, 110, 0.5)) & given
    assert torch.equal(kept.repeat_interleave(8, 2).repeat_interleave(16, 3)[..., :150] & given, want)
    assert (given & ~want).any()
    whole = value.nan_to_num()
    exact = reference.attend(query, key.nan_to_num(), whole, NM(1, 1), want, False, 0.5).out
    assert out[0, 0, :16].isnan().all()
    torch.testing.assert_close(out[:, :, 16:], exact[:, :, 16:], rtol=1e-5, atol=1e-5)
    with pytest.raises(RuntimeError, match="an argument is out of its range"):
        cpu.skip_forward(
            query, key, value, None, out, logsumexp, kept, MARGIN, Pattern.of(NM(1, 1), False, 0.5), isa,
            blocks=blocks, block_size=24,
        )  # fmt: skip


@pytest.mark.parametrize(("q_len", "needs_grad"), [(8, True), (1, True), (1, False)])
def test_margins_between_large_scores(q_len: int, needs_grad: bool, isa: str) -> None:
    """Between neighbouring floats that are 128 apart, a limit of 100 below the largest cannot be written down."""
    key = -(2.0**30) - 128.0 * torch.tensor([1.0, 0.0, 1.0, 2.0]).repeat_interleave(16).view(1, 1, 64, 1)
    for margin, want in ((100.0, [1, 1, 0, 0]), (130.0, [1, 1, 1, 0]), (260.0, [1, 1, 1, 1])):
        method, query, value = BlockSkip(margin), torch.ones(1, 1, q_len, 1), torch.randn(1, 1, 64, 4)
        out, *_, blocks = block_attention(
            query, key, value, None, None, method.name, False, 1.0, 0.0, False, needs_grad, f"cpu-{isa}"
        )
        assert blocks[0, 0, 0, :4].tolist() == [bool(x) for x in want]
        for kind in (torch.float32, torch.float64):
            s = query.to(kind) @ key.to(kind).mT
            assert method.choose(s, Rows(s, s, 0, 1.0))[0, 0, 0, ::16].tolist() == [bool(x) for x in want]
        exact = dynattn.attention(query.double(), key.double(), value.double(), method, scale=1.0, backend="reference")
        torch.testing.assert_close(out.double(), exact, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("method", [ALONE, INSIDE], ids=str)
def test_half_precision(method: BlockSkip, dtype: torch.dtype, isa: str, grid: Any) -> None:
    query, key, value = (x.to(dtype) for x in grid(2, 1, 65, 111, 20, 36))
    out, _, kept = run(isa, query, key, value, None, True, method)
    exact = reference.attend(query.double(), key.double(), value.double(), method, None, True, 0.5, kept=kept.tril(46))
    torch.testing.assert_close(out.double(), exact.out, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("scale", [0.5, 2e-38])
@pytest.mark.parametrize("method", [ALONE, INSIDE], ids=str)
def test_what_is_not_finite(method: BlockSkip, bad: float, scale: float, isa: str, grid: Any) -> None:
    """Scores that are not finite are kept and reach their rows; such values touch those alone that keep them."""
    query, key, value = grid(1, 1, 30, 100, 8, 8)
    query[0, 0, 3, 2] = bad
    value[0, 0, 70:80] = bad
    call: dict[str, Any] = {"causal": True, "scale": scale}
    out = dynattn.attention(query, key, value, method, backend=f"cpu-{isa}", **call)
    want = dynattn.attention(query, key, value, method, backend="reference", **call)
    torch.testing.assert_close(out, want, equal_nan=True, rtol=1e-5, atol=1e-5)
    assert out[0, 0, 3].isnan().all()


@pytest.mark.parametrize("dropout_p", [0.0, 0.3])
@pytest.mark.parametrize(
    ("lengths", "method"),
    [
        ((65, 111), ALONE), ((1, 100), ALONE), ((130, 70), ALONE), ((65, 111), INSIDE),
        ((90, 150), BlockSkip(MARGIN, BlockMass(0.5, 64, "mean", window=1, sinks=0))),
    ],
    ids=str,
)  # fmt: skip
def test_gradients_and_dropout(
    lengths: tuple[int, int], method: BlockSkip, dropout_p: float, isa: str, grid: Any
) -> None:  # fmt: skip
    for causal, masked in itertools.product((False, True), (False, True)):
        found = []
        mask = (torch.rand(lengths[1], generator=torch.Generator().manual_seed(2)) < 0.8) if masked else None
        for backend, dtype in ((f"cpu-{isa}", torch.float32), ("reference", torch.float64)):
            query, key, value = (x.to(dtype).requires_grad_() for x in grid(4, 2, *lengths, 16, 12))
            out, aux = dynattn.attention(
                query, key, value, method, attn_mask=mask, causal=causal, scale=0.5, backend=backend,
                dropout_p=dropout_p, seed=5 if dropout_p else None, return_aux=True,
            )  # fmt: skip
            loss = out.sin().sum() + aux.logsumexp.clamp(min=-1e3).square().sum() / 100
            gradients = torch.autograd.grad(loss, (query, key, value))
            found.append([x.double() for x in (out, aux.kept_mass, aux.density, *gradients)])
        torch.testing.assert_close(*found, rtol=1e-4, atol=1e-4)


def test_the_rows_of_a_block_decide_together(isa: str) -> None:
    """Seven queries of eight drop the last keys, and one asks for them."""
    query, key = torch.zeros(1, 1, 16, 2), torch.zeros(1, 1, 32, 2)
    key[:, :, :16, 0] = 4.0
    query[..., 0] = 1.0
    query[:, :, 5] = torch.tensor([0.0, 1.0])
    *_, kept = run(isa, query, key, key, None, False)
    assert kept[0, 0, :, 31].tolist() == [True] * 8 + [False] * 8
    assert kept[..., 0].all()


def test_routes() -> None:
    query, key, value = (torch.randn(1, 1, 20, 8) for _ in range(3))
    plan = dynattn.explain(query, key, value, BlockSkip(6.0), attn_mask=torch.zeros(20, 20))
    assert plan.backend == "cpu"
    assert "all pairs scored, the rest of what is small skipped" in plan.reason
    mask = torch.zeros(20, 20, requires_grad=True)
    assert dynattn.explain(query, key, value, BlockSkip(6.0), attn_mask=mask).backend == "reference"
    assert dynattn.explain(query.double(), key.double(), value.double(), BlockSkip(6.0)).backend == "reference"
    with pytest.raises(RuntimeError, match="tiles skip by maxima in bfloat16, not float32"):
        dynattn.attention(query, key, value, BlockSkip(6.0), backend="cpu-tiles-portable")


def test_routes_inside_of_kept_blocks() -> None:
    query, key, value = (torch.randn(1, 1, 20, 8) for _ in range(3))
    method = BlockSkip(4.0, BlockMass(0.98, 16, "similar"))
    plan = dynattn.explain(query, key, value, method, attn_mask=torch.arange(20) < 15)
    assert plan.backend == "cpu"
    assert "dropped blocks skipped, the others scored, the rest of what is small skipped" in plan.reason
    by_samples = BlockSkip(4.0, BlockMass(0.98, 16, "sampled"))
    for mask in (torch.zeros(20, 20), torch.ones(20, 20, dtype=torch.bool)):
        assert dynattn.explain(query, key, value, method, attn_mask=mask).backend == "cpu"
        plan = dynattn.explain(query, key, value, by_samples, attn_mask=mask)
        assert plan.backend == "reference"
        assert "only under a mask that is bool and the same for all queries" in plan.rejected["cpu"]
        with pytest.raises(RuntimeError, match="only under a mask that is bool"):
            dynattn.attention(query, key, value, by_samples, attn_mask=mask, backend="cpu")
    half = [x.bfloat16() for x in (query, key, value)]
    assert dynattn.explain(half[0], half[1], half[2], method).backend == "cpu"
    assert (
        dynattn.explain(half[0], half[1], half[2], method, backend="cpu-tiles-portable").backend == "cpu-tiles-portable"
    )
