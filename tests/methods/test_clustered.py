"""Keys in the order of their clusters: the method's choice among them, and nothing else changes."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import dynattn
from dynattn import BlockMass, BlockTopK, Clustered
from dynattn.maths import clusters
from dynattn.methods import parse
from tests.methods.block_rules import mean, rule, sampled_share
from tests.methods.oracle import Rule, Scores, expected, padding

TOPK = BlockTopK(0.3, 4, window=0, sinks=0, floor=0)


def ordered(inner: Rule, key: Tensor, size: int) -> Rule:
    """By loops, for the heads in turn: the rule of the scores of keys in their order, and back."""
    orders = iter(clusters.order(key, size).flatten(0, 1).tolist())

    def choose(s: Scores, offset: int) -> list[set[int]]:
        order = next(orders)
        return [{order[place] for place in kept} for kept in inner([[row[j] for j in order] for row in s], offset)]

    return choose


@pytest.mark.parametrize("lengths", [(13, 13), (5, 40), (30, 13), (1, 1)], ids=str)
@pytest.mark.parametrize(
    ("method", "by_loops"),
    [(TOPK, rule(TOPK, mean, (3, 10))),
     (BlockMass(0.7, 4, window=0, sinks=0), rule(BlockMass(0.7, 4, window=0, sinks=0), sampled_share))],
    ids=["topk", "mass"],
)  # fmt: skip
def test_the_rule_by_loops(method: BlockTopK | BlockMass, by_loops: Rule, lengths: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(1)
    query, key, value = (
        torch.randn(2, 2, n, 4, dtype=torch.float64, generator=generator) for n in (lengths[0], lengths[1], lengths[1])
    )
    for mask, causal in ((None, False), (None, True), (padding(lengths[1], lengths[1], lengths[1] // 2), False)):
        want = expected(ordered(by_loops, key, 4), query, key, value, mask, causal)
        out, aux = dynattn.attention(
            query, key, value, Clustered(method), attn_mask=mask, causal=causal, scale=0.5, return_aux=True
        )
        torch.testing.assert_close(out, want.out)
        torch.testing.assert_close(aux.density, torch.where(want.allowed > 0, want.kept / want.allowed, 1.0))


def test_keys_that_are_scattered_are_kept_where_blocks_by_place_lose_them() -> None:
    generator = torch.Generator().manual_seed(0)
    kinds = (torch.arange(64) + torch.arange(64) // 16) % 4
    key = 6 * torch.eye(4)[kinds][None, None] + 0.1 * torch.randn(1, 1, 64, 4, generator=generator)
    query = 2 * torch.eye(4)[torch.arange(64) // 16][None, None]
    method = BlockTopK(0.25, 16, window=0, sinks=0, floor=0)
    _, by_place = dynattn.attention(query, key, key, method, return_aux=True)
    _, by_cluster = dynattn.attention(query, key, key, Clustered(method), return_aux=True)
    assert by_place.kept_mass.mean() < 0.3
    assert by_cluster.kept_mass.min() > 0.99


def test_names_and_refusals() -> None:
    name = "clustered-blocktopk-0.25-b16-sampled-w0-s0"
    assert parse(name) == Clustered(BlockTopK(0.25, 16, "sampled", 0, 0))
    assert parse(name).name == name
    assert parse("clustered-blockmass-1.0-b16-w0-s0").keeps_everything
    with pytest.raises(TypeError, match="Clustered: method must be a BlockTopK or BlockMass"):
        Clustered(dynattn.TopK(k=3))  # pyright: ignore[reportArgumentType]
    for method in (BlockTopK(0.5), BlockTopK(0.5, window=0), BlockMass(0.5, sinks=0)):
        with pytest.raises(ValueError, match="Clustered: method must have neither window nor sinks"):
            Clustered(method)
    for wrong in ("clustered-topk-3", "clustered-blockbound-0.9-b8", "clustered-", "clustered-blocktopk-2.0-b8-w0-s0"):
        with pytest.raises(ValueError, match="must"):
            parse(wrong)


def test_the_account_pays_for_the_clusters() -> None:
    alone = TOPK.glance(8, 4)
    found = Clustered(TOPK).glance(8, 4)
    assert found.multiply_adds == alone.multiply_adds + 3 * 8 / 4
    assert found.key_bytes == alone.key_bytes + 3 * 8 * 4
    assert math.isclose(alone.multiply_adds, 8 / 16)
