"""Blocks whose mean speaks for them, against the cosines of all pairs; and what is chosen by them."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

import dynattn
from dynattn import BlockMass, BlockTopK
from dynattn.maths.similar import ALIKE, sure
from tests.methods.block_rules import Sure, mean, rule
from tests.methods.oracle import expected, padding


def inputs(q_len: int, kv_len: int) -> tuple[Tensor, Tensor, Tensor]:
    """Some blocks of vectors that are alike, and others that are not."""
    generator = torch.Generator().manual_seed(q_len + kv_len)

    def vectors(length: int, heads: int) -> Tensor:
        common = 2 * torch.randn(2, heads, 1, 4, dtype=torch.float64, generator=generator)
        mixed = torch.rand(2, heads, -(-length // 4), 1, dtype=torch.float64, generator=generator) * 3
        noise = torch.randn(2, heads, length, 4, dtype=torch.float64, generator=generator)
        return common + noise * mixed.repeat_interleave(4, 2)[:, :, :length]

    return vectors(q_len, 2), vectors(kv_len, 1), vectors(kv_len, 1)


def cosine(x: list[float], y: list[float]) -> float:
    return sum(a * b for a, b in zip(x, y, strict=True)) / math.hypot(*x) / math.hypot(*y)


def alike(vectors: list[list[float]], block: range) -> bool:
    return sum(cosine(vectors[i], vectors[j]) for i in block for j in block) / len(block) ** 2 >= ALIKE


def by_loops(query: Tensor, key: Tensor) -> Iterator[Sure]:
    """For the heads in turn."""
    for batch in range(len(query)):
        for head in range(query.shape[1]):
            q, k = query[batch, head].tolist(), key[batch, head // (query.shape[1] // key.shape[1])].tolist()
            yield lambda queries, keys, q=q, k=k: not alike(q, queries) or not alike(k, keys)


LENGTHS = [(13, 13), (5, 40), (30, 13), (1, 1)]


@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
def test_flags_by_loops(lengths: tuple[int, int]) -> None:
    query, key, _ = inputs(*lengths)
    found = sure(query, key, 4)
    blocks = [[range(i, min(i + 4, n)) for i in range(0, n, 4)] for n in lengths]
    for of_head, want in zip(found.flatten(0, 1), by_loops(query, key), strict=True):
        assert of_head.tolist() == [[want(queries, keys) for keys in blocks[1]] for queries in blocks[0]]


def test_both_kinds_of_blocks_are_met_there() -> None:
    found = sure(*inputs(5, 40)[:2], 4)
    assert found.any()
    assert not found.all()


@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
@pytest.mark.parametrize("method", [BlockTopK(0.4, 4, "similar", floor=0), BlockMass(0.6, 4, "similar", 1, 0)])
def test_the_rule_by_loops(method: BlockTopK | BlockMass, lengths: tuple[int, int]) -> None:
    query, key, value = inputs(*lengths)
    for mask, causal in ((None, False), (None, True), (padding(lengths[1], lengths[1], lengths[1] // 2), True)):
        want = expected(rule(method, mean, (2, 5), by_loops(query, key)), query, key, value, mask, causal)
        out, aux = dynattn.attention(
            query, key, value, method, attn_mask=mask, causal=causal, scale=0.5, return_aux=True
        )
        torch.testing.assert_close(out, want.out)
        torch.testing.assert_close(aux.density, torch.where(want.allowed > 0, want.kept / want.allowed, 1.0))


@pytest.mark.parametrize("causal", [False, True])
def test_blocks_without_all_scores_are_the_same(causal: bool) -> None:
    query, key, value = (x.float() for x in inputs(70, 90))
    for method in (BlockTopK(0.4, 8, "similar"), BlockMass(0.6, 8, "similar")):
        found = [
            dynattn.attention(query, key, value, method, causal=causal, backend=backend, return_aux=True)
            for backend in ("auto", "reference")
        ]
        torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-5, atol=1e-5)
        assert torch.equal(found[0][1].density, found[1][1].density)


def test_what_is_not_finite_is_like_nothing() -> None:
    key = torch.ones(1, 1, 16, 4)
    key[0, 0, 9] = math.nan
    assert sure(torch.ones(1, 2, 8, 4), key, 8).tolist() == [[[[False, True]]] * 2]
