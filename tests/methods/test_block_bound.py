"""Blocks dropped with a proof, against the rule by loops; and the proof itself."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import dynattn
from dynattn import BlockBound
from dynattn.maths.estimate import Input
from dynattn.methods import Rows
from tests.methods.oracle import Rule, Scores, expected, padding

SIZES = [(13, 13), (5, 40), (1, 1), (30, 13)]
MASKS = ("none", "causal", "padding", "pairs", "added")


def rule(method: BlockBound, query: Tensor, key: Tensor, scale: float, bias: Tensor | None) -> Rule:
    """By loops, for the heads in turn: ``query`` and ``key`` are (heads, length, head_dim)."""
    size, window = method.block, method.block if method.window is None else method.window
    heads = iter(zip(query.tolist(), key.tolist(), strict=True))

    def bound(q: list[float], keys: list[list[float]]) -> float:
        return scale * sum(max(q[d] * max(k[d] for k in keys), q[d] * min(k[d] for k in keys)) for d in range(len(q)))

    def choose(s: Scores, offset: int) -> list[set[int]]:
        queries_of_head, keys_of_head = next(heads)
        chosen = []
        for first in range(0, len(s), size):
            rows = range(first, min(first + size, len(s)))
            blocks = [range(j, min(j + size, len(s[0]))) for j in range(0, len(s[0]), size)]
            near = [J for J in blocks if any(abs(i + offset - j) < window or j < method.sinks for i in rows for j in J)]
            least = {}
            for J in blocks:
                seen = [keys_of_head[j] for j in J if any(s[i][j] != -math.inf for i in rows)]
                shares = [0.0]
                for i in rows:
                    whole = sum(math.exp(s[i][j]) for N in near for j in N)
                    allowed = [j for j in J if s[i][j] != -math.inf]
                    if allowed:
                        most = max(float(bias[i, j]) for j in allowed) if bias is not None else 0.0
                        weight = len(allowed) * math.exp(bound(queries_of_head[i], seen) + most)
                        shares.append(weight / whole if whole else math.inf)
                if J not in near:
                    least[J] = max(shares)
            lost = 0.0
            while least:
                lowest = min(least, key=lambda J: (least[J], -J.start))
                lost += least.pop(lowest)
                if lost > (1 - method.mass) / method.mass:
                    break
                blocks.remove(lowest)
            chosen += [{j for J in blocks for j in J} for _ in rows]
        return chosen

    return choose


def inputs(q_len: int, kv_len: int, run: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    """Keys that lie close together in runs, and queries like the keys at their places, so that there is something to
    prove."""
    generator = torch.Generator().manual_seed(q_len)

    def normal(*shape: int) -> Tensor:
        return torch.randn(2, 2, *shape, dtype=torch.float64, generator=generator)

    key = (2 * normal(-(-kv_len // run), 4)).repeat_interleave(run, 2)[:, :, :kv_len] + 0.1 * normal(kv_len, 4)
    query = normal(q_len, 4)
    near = min(q_len, kv_len)
    query[:, :, q_len - near :] += key[:, :, kv_len - near :]
    return query, key, normal(kv_len, 3)


def mask_of(kind: str, q_len: int, kv_len: int) -> Tensor | None:
    generator = torch.Generator().manual_seed(kv_len)
    if kind == "padding":
        return padding(kv_len, kv_len, kv_len // 2)
    if kind == "pairs":
        return torch.rand(q_len, kv_len, generator=generator) < 0.8
    if kind == "added":
        return torch.randn(q_len, kv_len, generator=generator, dtype=torch.float64)
    return None


@pytest.mark.parametrize("mask", ["none", "causal", "padding"])
@pytest.mark.parametrize("method", [BlockBound(0.9, 4), BlockBound(0.5, 4, window=1, sinks=0), BlockBound(0.6, 3, 5)])
def test_the_rule_by_loops(method: BlockBound, mask: str) -> None:
    for q_len, kv_len in SIZES:
        query, key, value = inputs(q_len, kv_len)
        by_loops = rule(method, query.flatten(0, 1), key.flatten(0, 1), 0.7, None)
        allowed = mask_of(mask, q_len, kv_len)
        causal = mask == "causal"
        want = expected(by_loops, query, key, value, allowed, causal, 0.7)
        out, aux = dynattn.attention(
            query, key, value, method, attn_mask=allowed, causal=causal, scale=0.7, return_aux=True
        )
        torch.testing.assert_close(out, want.out)
        torch.testing.assert_close(aux.density, torch.where(want.allowed > 0, want.kept / want.allowed, 1.0))


@pytest.mark.parametrize("mask", ["pairs", "added"])
def test_masks_of_pairs_choose_as_the_rule_says(mask: str) -> None:
    method, (query, key, _) = BlockBound(0.7, 4), inputs(14, 30)
    given = mask_of(mask, 14, 30)
    assert given is not None
    s = 0.7 * query @ key.mT
    s = s + given if mask == "added" else s.masked_fill(~given, -math.inf)
    kept = method.choose(s, Rows(query, key, 16, 0.7))
    by_loops = rule(method, query.flatten(0, 1), key.flatten(0, 1), 0.7, given if mask == "added" else None)
    for got, of_head in zip(kept.flatten(0, 1), s.flatten(0, 1), strict=True):
        want = by_loops(of_head.tolist(), 16)
        assert [set(row.nonzero().flatten().tolist()) for row in got] == want


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("mass", [0.3, 0.9, 0.99])
@pytest.mark.parametrize("block", [4, 8])
def test_every_query_keeps_the_mass_that_was_proved(mass: float, block: int, mask: str) -> None:
    query, key, value = inputs(40, 56)
    _, aux = dynattn.attention(
        query, key, value, BlockBound(mass, block), attn_mask=mask_of(mask, 40, 56), causal=mask == "causal",
        return_aux=True,
    )  # fmt: skip
    assert aux.kept_mass.min() >= mass - 1e-12


@pytest.mark.parametrize("causal", [False, True])
def test_the_kernels_keep_it_too(causal: bool) -> None:
    query, key, value = (x.float() for x in inputs(70, 100, run=8))
    _, aux = dynattn.attention(query, key, value, BlockBound(0.9, 8), causal=causal, return_aux=True)
    assert aux.kept_mass.min() >= 0.9 - 1e-5
    assert aux.density.max() < 0.9  # something was dropped


def test_all_of_the_mass_is_all_of_the_pairs() -> None:
    """Also where other blocks have next to nothing, and their shares round to 0."""
    query, key, value = inputs(64, 64, run=8)
    for backend, dtype in (("auto", torch.float32), ("reference", torch.float64)):
        q, k, v = (x.to(dtype) for x in (1000 * query, key, value))
        _, aux = dynattn.attention(q, k, v, BlockBound(1.0, 8), return_aux=True, backend=backend)
        assert (aux.density == 1).all(), backend


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_bounds_do_not_round_to_half_precision(dtype: torch.dtype) -> None:
    query, key, _ = (x.to(dtype) for x in inputs(20, 40))
    method, s = BlockBound(0.5, 4), 0.3 * (query.float() @ key.float().mT)
    want, _ = method.of_scores(s, Rows(query, key, 20, 0.3))
    (got,) = method.of_input(Input(query, key, None, False, 0.3))
    torch.testing.assert_close(got.value, want)


def test_clusters_far_apart_are_dropped_and_noise_is_not() -> None:
    query, key, value = inputs(64, 64)
    noise = torch.randn(key.shape, dtype=key.dtype, generator=torch.Generator().manual_seed(0))
    density = [
        dynattn.attention(query, k, value, BlockBound(0.95, 4), return_aux=True)[1].density.mean() for k in (key, noise)
    ]
    assert density[0] < 0.6
    assert density[1] > 0.95


def test_a_nan_reaches_the_output() -> None:
    query, key, value = inputs(16, 32)
    key[0, 0, 9] = math.nan
    out = dynattn.attention(query, key, value, BlockBound(0.5, 4))
    assert out[0, 0].isnan().all()
    assert out[1].isfinite().all()


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ((1, 16), TypeError, "mass must be a float"),
        ((1.5, 16), ValueError, "mass must be between 1e-6 and 1"),
        ((0.5, 0), ValueError, "block must be between 1 and 1024"),
        ((0.5, 16, 0), ValueError, "window must be at least 1"),
    ],
)
def test_refusals(arguments: tuple, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=f"BlockBound: {text}"):
        BlockBound(*arguments)
