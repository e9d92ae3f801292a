"""Blocks by rank, against the rule by loops; what all methods of whole blocks promise."""

import math
from typing import Any

import pytest
import torch

import dynattn
from dynattn import BlockMass, BlockTopK
from dynattn.maths import antidiagonal, bounds, runs, sampled
from dynattn.methods import Rows, parse
from dynattn.methods.blocks import ESTIMATES, Blocks
from tests.covering import half
from tests.methods.block_rules import FORCED, Values, antidiagonal_share, holds, mean, rule, run_share, sampled_share
from tests.methods.oracle import agrees, inputs

"""All rows of scores, the queries and the keys of a block: its value."""


@pytest.mark.parametrize(
    ("shares", "block", "forced", "floor"),
    half([(0.25, 1, 4), (0.5, 1, 2), (0.000001, 1, 10**6), (1.0, 1, 1)], [1, 2, 4, 32], FORCED, [0, 5, 32]),
)
def test_definition(shares: tuple[float, int, int], block: int, forced: dict[str, Any], floor: int) -> None:
    ratio, *exact = shares
    method = BlockTopK(ratio, block, floor=floor, **forced)
    agrees(method, rule(method, mean, tuple(exact)), [(13, 13), (5, 13), (13, 5)])


@pytest.mark.parametrize("forced", FORCED[:2], ids=str)
@pytest.mark.parametrize(
    ("by", "values", "block"),
    [("sampled", sampled_share, 4), ("sampled", sampled_share, 24), ("antidiagonal", antidiagonal_share, 16),
     ("antidiagonal", antidiagonal_share, 32), ("runs", run_share, 24)],
)  # fmt: skip
def test_estimates(by: str, values: Values, block: int, forced: dict[str, Any]) -> None:
    method = BlockTopK(0.4, block, by, floor=0, **forced)
    holds(method, rule(method, values, (2, 5)), [(70, 70), (37, 100), (1, 90), (90, 41)])


def test_without_masks_the_mean_is_the_product_of_the_pooled_vectors() -> None:
    torch.manual_seed(0)
    query, key = torch.randn(2, 1, 3, 32, 8, dtype=torch.float64)
    s = 0.7 * query @ key.mT
    pooled = [x.unflatten(2, (4, 8)).mean(3) for x in (query, key)]
    means = 0.7 * pooled[0] @ pooled[1].mT
    kept = BlockTopK(0.25, 8, window=0, sinks=0, floor=0).choose(s, Rows(query, key, 0, 0.7))
    best = means.argmax(-1)
    for h in range(3):
        for i in range(32):
            assert kept[0, h, i].nonzero().flatten().tolist() == [8 * int(best[0, h, i // 8]) + j for j in range(8)]


def test_the_choice_by_bounds_is_that_of_its_values() -> None:
    query, key, _ = inputs(64, 64, heads=2, kv_heads=2)
    s = 0.5 * query @ key.mT
    rows = Rows(query, key, 0, 0.5)
    value, _ = bounds.of_scores(s, 8, query, key, 0.5)
    kept = BlockTopK(0.25, 8, "bounds", window=0, sinks=0).choose(s, rows)
    best = value.sort(dim=-1, descending=True, stable=True).indices[..., :4]  # the floor: 32 keys
    blocks = torch.zeros_like(value, dtype=torch.bool).scatter(-1, best, True)
    assert torch.equal(kept, blocks.repeat_interleave(8, -2).repeat_interleave(8, -1))


def test_causal_attention_keeps_its_own_blocks_and_the_first_within_the_budget() -> None:
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 1, 2, 512, 16)
    for by in sorted(set(ESTIMATES) - {"similar"}):  # which forces others besides
        _, aux = dynattn.attention(query, key, value, BlockTopK(0.25, 16, by), causal=True, return_aux=True)
        kept = BlockTopK(0.25, 16, by).choose_blocks(query, key, None, True, 0.25)
        for row in range(32):
            assert kept[0, :, row, [0, row, max(0, row - 1)]].all()
            assert (kept[0, :, row].sum(-1) == max(math.ceil((row + 1) / 4), min(row + 1, 3))).all()
        assert (aux.density < 0.32).all()


@pytest.mark.parametrize("by", sorted(ESTIMATES))
@pytest.mark.parametrize("kind", [BlockTopK, BlockMass])
def test_nan_reaches_the_output(by: str, kind: type[Blocks]) -> None:
    query, key, value = inputs(48, 112)  # whole tiles: antidiagonals of a cut one miss some keys
    key[0, 0, 20] = math.nan  # of seven blocks at most four are kept by force, and not this one: it is ranked
    for method in (kind(0.8, 16, by), kind(0.1, 16, by, window=0, sinks=0)):  # pyright: ignore[reportCallIssue]
        out = dynattn.attention(query, key, value, method)
        assert out[0, :2].isnan().all()
        assert out[0, 2:].isfinite().all()


def test_steps_are_those_of_the_pages() -> None:
    assert (sampled.STEP, runs.STEP, antidiagonal.STEP) == (16, 16, 16)


@pytest.mark.parametrize(
    ("name", "method"),
    [
        ("blocktopk-0.25-b16", BlockTopK(0.25, 16)),
        ("blocktopk-0.25-b64-w0-s0", BlockTopK(0.25, 64, window=0, sinks=0)),
        ("blocktopk-0.25-b64-w64", BlockTopK(0.25, 64, window=64)),
        ("blocktopk-0.25-b64-sampled-w128-s64-f0", BlockTopK(0.25, 64, "sampled", 128, 64, 0)),
        ("blocktopk-0.25-b64-bounds", BlockTopK(0.25, 64, "bounds")),
        ("blocktopk-0.25-b32-antidiagonal-f8", BlockTopK(0.25, 32, "antidiagonal", floor=8)),
        ("blocktopk-0.25-b64-lowrank-w0", BlockTopK(0.25, 64, "lowrank", window=0)),
        ("blockmass-0.9-b64-sampled", BlockMass(0.9, 64)),
        ("blockmass-0.9-b16", BlockMass(0.9, 16, "mean")),
        ("blockmass-0.9-b16-bounds-w0-s0", BlockMass(0.9, 16, "bounds", 0, 0)),
    ],
)
def test_names(name: str, method: Blocks) -> None:
    assert method.name == name
    assert parse(name) == method


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ((1, 16), TypeError, "ratio must be a float"),
        ((0.5, 0), ValueError, "block must be between 1 and 1024"),
        ((0.5, 1025), ValueError, "block must be between 1 and 1024"),
        ((0.5, 16.0), TypeError, "block must be an int"),
        ((0.5, 16, "best"), ValueError, f"by must be one of {', '.join(ESTIMATES)}: got 'best'; try 'sampled'"),
        ((0.5, 16, 3), ValueError, "by must be one of"),
        ((0.5, 24, "antidiagonal"), ValueError, "block must be a multiple of 16 with 'antidiagonal': got 24"),
        ((0.5, 16, "mean", -1), ValueError, "window must be between 0 and"),
        ((0.5, 16, "mean", 1.5), TypeError, "window must be an int"),
        ((0.5, 16, "mean", 0, None), TypeError, "sinks must be an int"),
        ((0.5, 16, "mean", 0, 0, -1), ValueError, "floor must be between 0 and"),
        ((0.5, 16, "mean", 0, 0, 0.5), TypeError, "floor must be an int"),
    ],
)
def test_refusals(arguments: tuple, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=f"BlockTopK: {text}"):
        BlockTopK(*arguments)
