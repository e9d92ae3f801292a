"""The kernel that skips by running maxima, against the definition: what it keeps, and what it makes of it."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

import dynattn
from dynattn import BlockSkip
from dynattn.kernels import cpu
from dynattn.methods import Rows
from dynattn.ops.blocks import block_attention
from dynattn.reference import pairs as reference
from tests.kernels.cpu.masks import masks

pytestmark = pytest.mark.skipif(not cpu.is_available(), reason=cpu.unavailable_reason() or "")

MARGIN = 1.3  # no difference of the scores below
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


def run(isa: str, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, causal: bool) -> tuple[Tensor, ...]:
    """The output, the logsumexp, and the pairs that the kernel says it kept."""
    name = BlockSkip(MARGIN).name
    out, logsumexp, *_, blocks = block_attention(
        query, key, value, mask, None, name, causal, 0.5, 0.0, False, True, f"cpu-{isa}"
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


def test_margins_between_large_scores(isa: str) -> None:
    """Between neighbouring floats that are 128 apart, a limit of 100 below the largest cannot be written down."""
    key = -(2.0**30) - 128.0 * torch.tensor([1.0, 0.0, 1.0, 2.0]).repeat_interleave(16).view(1, 1, 64, 1)
    for margin, want in ((100.0, [1, 1, 0, 0]), (130.0, [1, 1, 1, 0]), (260.0, [1, 1, 1, 1])):
        method, query, value = BlockSkip(margin), torch.ones(1, 1, 8, 1), torch.randn(1, 1, 64, 4)
        out, *_, blocks = block_attention(
            query, key, value, None, None, method.name, False, 1.0, 0.0, False, True, f"cpu-{isa}"
        )
        assert blocks[0, 0, 0, :4].tolist() == [bool(x) for x in want]
        for kind in (torch.float32, torch.float64):
            s = query.to(kind) @ key.to(kind).mT
            assert method.choose(s, Rows(s, s, 0, 1.0))[0, 0, 0, ::16].tolist() == [bool(x) for x in want]
        exact = dynattn.attention(query.double(), key.double(), value.double(), method, scale=1.0, backend="reference")
        torch.testing.assert_close(out.double(), exact, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype: torch.dtype, isa: str, grid: Any) -> None:
    query, key, value = (x.to(dtype) for x in grid(2, 1, 65, 111, 20, 36))
    out, _, kept = run(isa, query, key, value, None, True)
    exact = reference.attend(
        query.double(), key.double(), value.double(), BlockSkip(MARGIN), None, True, 0.5, kept=kept.tril(46)
    )
    torch.testing.assert_close(out.double(), exact.out, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("scale", [0.5, 2e-38])
def test_what_is_not_finite(bad: float, scale: float, isa: str, grid: Any) -> None:
    """Scores that are not finite are kept and reach their rows; such values touch those alone that keep them."""
    method = BlockSkip(MARGIN)
    query, key, value = grid(1, 1, 30, 100, 8, 8)
    query[0, 0, 3, 2] = bad
    value[0, 0, 70:80] = bad
    call: dict[str, Any] = {"causal": True, "scale": scale}
    out = dynattn.attention(query, key, value, method, backend=f"cpu-{isa}", **call)
    want = dynattn.attention(query, key, value, method, backend="reference", **call)
    torch.testing.assert_close(out, want, equal_nan=True, rtol=1e-5, atol=1e-5)
    assert out[0, 0, 3].isnan().all()


@pytest.mark.parametrize("dropout_p", [0.0, 0.3])
@pytest.mark.parametrize("lengths", [(65, 111), (1, 100), (130, 70)], ids=str)
def test_gradients_and_dropout(lengths: tuple[int, int], dropout_p: float, isa: str, grid: Any) -> None:
    for causal, masked in itertools.product((False, True), (False, True)):
        found = []
        mask = (torch.rand(lengths[1], generator=torch.Generator().manual_seed(2)) < 0.8) if masked else None
        for backend, dtype in ((f"cpu-{isa}", torch.float32), ("reference", torch.float64)):
            query, key, value = (x.to(dtype).requires_grad_() for x in grid(4, 2, *lengths, 16, 12))
            out, aux = dynattn.attention(
                query, key, value, BlockSkip(MARGIN), attn_mask=mask, causal=causal, scale=0.5, backend=backend,
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
    half = [x.bfloat16() for x in (query, key, value)]
    with pytest.raises(RuntimeError, match="tiles compute N:M attention and large blocks"):
        dynattn.attention(half[0], half[1], half[2], BlockSkip(6.0), backend="cpu-tiles-portable")
