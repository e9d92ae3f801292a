"""Scores in an eighth of the dimensions, by loops; and what is chosen by them."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

import dynattn
from dynattn import BlockMass, BlockTopK
from dynattn.maths import lowrank
from dynattn.maths.estimate import Input
from tests.methods.block_rules import rule
from tests.methods.oracle import Rule, Scores, expected, padding

SIZE, SCALE = 4, 0.5
LENGTHS = [(13, 13), (5, 40), (22, 9)]
Vectors = list[list[float]]


def inputs(q_len: int, kv_len: int, width: int = 12) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(q_len + kv_len)
    shapes = ((2, 2, q_len, width), (2, 1, kv_len, width), (2, 1, kv_len, 3))
    return tuple(torch.randn(shape, dtype=torch.float64, generator=generator) for shape in shapes)  # pyright: ignore[reportReturnType]


def largest_dimensions(queries: Vectors) -> list[int]:
    width = len(queries[0])
    sums = [sum(abs(q[d]) for q in queries) for d in range(width)]
    return sorted(range(width), key=lambda d: (-sums[d], d))[: math.ceil(width / 8)]


def probed(s: Scores, query: Vectors, key: Vectors) -> Scores:
    """Scores of one head in few dimensions, -inf where ``s`` is."""
    found = []
    for i, row in enumerate(s):
        first = i // SIZE * SIZE
        dims = largest_dimensions(query[first : first + SIZE])
        found.append([
            -math.inf if x == -math.inf else SCALE * sum(query[i][d] * key[j][d] for d in dims)
            for j, x in enumerate(row)
        ])  # fmt: skip
    return found


def share(t: Scores, queries: range, keys: range) -> float:
    """The share of the block's largest score in those of all blocks, summed over the queries."""
    total = 0.0
    for i in queries:
        most = [math.exp(max(t[i][j : j + SIZE])) for j in range(0, len(t[i]), SIZE)]
        total += most[keys.start // SIZE] / sum(most) if sum(most) else 0.0
    return math.log(total) if total else -math.inf


def by_loops(method: BlockTopK | BlockMass, query: Tensor, key: Tensor) -> Rule:
    """For the heads in turn."""

    def vectors() -> Iterator[tuple[Vectors, Vectors]]:
        for batch in range(len(query)):
            for head in range(query.shape[1]):
                of_key = head // (query.shape[1] // key.shape[1])
                yield query[batch, head].tolist(), key[batch, of_key].tolist()

    heads, choose = vectors(), rule(method, share, (2, 5))
    return lambda s, offset: choose(probed(s, *next(heads)), offset)


@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
@pytest.mark.parametrize("method", [BlockTopK(0.4, 4, "lowrank", floor=0), BlockMass(0.6, 4, "lowrank", 1, 0)])
def test_the_rule_by_loops(method: BlockTopK | BlockMass, lengths: tuple[int, int]) -> None:
    query, key, value = inputs(*lengths)
    for mask, causal in ((None, False), (None, True), (padding(lengths[1], lengths[1], lengths[1] // 2), True)):
        want = expected(by_loops(method, query, key), query, key, value, mask, causal, SCALE)
        out, aux = dynattn.attention(
            query, key, value, method, attn_mask=mask, causal=causal, scale=SCALE, return_aux=True
        )
        torch.testing.assert_close(out, want.out)
        torch.testing.assert_close(aux.density, torch.where(want.allowed > 0, want.kept / want.allowed, 1.0))


def test_an_eighth_of_the_dimensions_and_at_least_one() -> None:
    assert [lowrank.rank(width) for width in (1, 7, 8, 9, 64, 100)] == [1, 1, 1, 2, 8, 13]


def test_of_dimensions_that_tie_the_lower_is_looked_at() -> None:
    """All queries are as large in every dimension; the keys differ in the first alone, or in the second alone."""
    query, key = torch.ones(1, 1, 8, 8), torch.zeros(1, 2, 16, 8)
    key[0, 0, 8:, 0] = key[0, 1, 8:, 1] = 3.0
    (found,) = lowrank.of_input(Input(query.expand(1, 2, 8, 8), key, None, False, 1.0), 8)
    first, second = found.value[0, :, 0]
    assert first[1] - first[0] == pytest.approx(3.0)
    assert second[1] == second[0]


def test_where_few_dimensions_hold_all_of_the_queries_the_choice_is_that_of_the_scores() -> None:
    generator = torch.Generator().manual_seed(0)
    query, key = (torch.randn(1, 2, n, 16, generator=generator, dtype=torch.float64) for n in (32, 96))
    query[:, :, :16, 2:] = 0.0
    query[:, :, 16:, :14] = 0.0  # other dimensions for the other block
    (found,) = lowrank.of_input(Input(query, key, None, False, 1.0), 16)
    most = (query @ key.mT).unflatten(3, (6, 16)).amax(-1)
    want = most.softmax(-1).unflatten(2, (2, 16)).sum(3).log()
    torch.testing.assert_close(found.value, want)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_key_that_is_not_finite_ranks_first_in_whatever_dimension_it_is(bad: float) -> None:
    query, key = torch.ones(1, 1, 8, 16), torch.zeros(1, 1, 32, 16)
    query[..., :2] = 2.0  # the others are not looked at
    key[0, 0, 20, 9] = bad
    method = BlockTopK(0.25, 8, "lowrank", window=0, sinks=0, floor=0)
    assert method.choose_blocks(query, key, None, False, 1.0).flatten().tolist() == [False, False, True, False]
    mask = torch.arange(32) != 20  # nobody may attend it
    assert method.choose_blocks(query, key, mask, False, 1.0).flatten().tolist() == [True, False, False, False]
