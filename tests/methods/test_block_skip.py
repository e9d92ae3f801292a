"""Blocks skipped by running maxima, of all or of those that another method keeps, against the rule by loops; and what
every query keeps at least."""

from __future__ import annotations

import math

import pytest
import torch

import dynattn
from dynattn import NM, BlockMass, BlockSkip, BlockTopK, Intersection, PerHead, TopK, Union, Window
from dynattn.methods import PairMethod, Rows, parse
from dynattn.methods.blocks import Blocks
from dynattn.reference import pairs as reference
from tests.methods import block_rules
from tests.methods.oracle import Rule, Scores, agrees, inputs


def rule(margin: float) -> Rule:
    """By loops: a block of 8 queries and 16 keys stays where one of the queries asks for it."""

    def choose(s: Scores, offset: int) -> list[set[int]]:
        chosen: list[set[int]] = []
        for first in range(0, len(s), 8):
            rows, kept = s[first : first + 8], set[int]()
            most = [-math.inf for _ in rows]
            for start in range(0, len(s[0]), 16):
                keys, asked = range(start, min(start + 16, len(s[0]))), False
                for i, row in enumerate(rows):
                    largest = max(row[j] for j in keys)
                    most[i] = max(most[i], largest)
                    asked = asked or (largest > -math.inf and largest >= most[i] - margin)
                if asked:
                    kept |= set(keys)
            chosen += [kept for _ in rows]
        return chosen

    return choose


def inside(among: Rule, margin: float) -> Rule:
    """By loops: what ``among`` drops is as if it were not there."""

    def choose(s: Scores, offset: int) -> list[set[int]]:
        seen = among(s, offset)
        left = [[x if j in keys else -math.inf for j, x in enumerate(row)] for row, keys in zip(s, seen, strict=True)]
        return [kept & keys for kept, keys in zip(rule(margin)(left, offset), seen, strict=True)]

    return choose


@pytest.mark.parametrize("margin", [0.0, 1.7, 3.2])
def test_the_rule_by_loops(margin: float) -> None:
    agrees(BlockSkip(margin), rule(margin), [(13, 70), (5, 40), (1, 1), (40, 20), (1, 50)])


@pytest.mark.parametrize(
    ("margin", "among"),
    [
        (0.3, BlockTopK(0.4, 16, floor=0)), (1.7, BlockTopK(0.4, 32, window=1, sinks=0)),
        (1.2, BlockMass(0.6, 16, "mean", 0, 0)),
    ],
    ids=str,
)  # fmt: skip
def test_the_rule_inside_of_kept_blocks_by_loops(margin: float, among: Blocks) -> None:
    want = inside(block_rules.rule(among, block_rules.mean, (2, 5)), margin)
    block_rules.holds(BlockSkip(margin, among), want, [(23, 70), (1, 50), (20, 17)])


def test_maxima_inside_of_kept_blocks_are_those_of_the_kept_blocks() -> None:
    """A block with the largest score is dropped for its mean. Alone that score drops all others, and so it does for
    what both keep; inside of the kept blocks nothing is known of it."""
    scores = torch.zeros(1, 1, 16, 64)
    scores[..., :16], scores[..., 5], scores[..., 32:48] = -5.0, 5.0, 2.5
    among, margin = BlockTopK(0.75, 16, window=0, sinks=0), 2.0

    def kept(method: PairMethod) -> list[bool]:
        return method.choose(scores, Rows(scores, scores, 48, 1.0))[0, 0, 0, ::16].tolist()

    assert kept(among) == [False, True, True, True]
    assert kept(BlockSkip(margin)) == [True, False, False, False]
    assert kept(Intersection((among, BlockSkip(margin)))) == [False] * 4
    assert kept(BlockSkip(margin, among)) == [False, True, True, False]


def test_something_is_dropped_there() -> None:
    query, key, value = inputs(13, 70, 2, 1)
    _, aux = dynattn.attention(query, key, value, BlockSkip(0.0), scale=0.5, return_aux=True)
    assert aux.density.min() < 0.9


@pytest.mark.parametrize("kind", ["none", "causal", "pairs", "added"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("margin", [0.5, 2.0, 6.0])
def test_every_query_keeps_what_is_promised(margin: float, dtype: torch.dtype, kind: str) -> None:
    generator = torch.Generator().manual_seed(3)
    query, key, value = (3 * torch.randn(2, 2, n, 8, generator=generator).to(dtype) for n in (90, 150, 150))
    mask = None
    if kind == "pairs":
        mask = torch.rand(90, 150, generator=generator) < 0.5
    if kind == "added":
        mask = 3 * torch.randn(90, 150, generator=generator).to(dtype)
    method = BlockSkip(margin)
    _, aux = dynattn.attention(query, key, value, method, attn_mask=mask, causal=kind == "causal", return_aux=True)
    s = reference.scores(query, key, mask, kind == "causal", 8**-0.5, 60)
    allowed = s != -math.inf
    kept = reference.select(s, method, query, key, 60, 8**-0.5)
    dropped = (allowed & ~kept).sum(-1)
    least = torch.tensor([method.least_mass(int(d)) for d in dropped.flatten()]).view_as(dropped)
    assert (aux.kept_mass >= least - 1e-5).all()
    assert dropped.any()


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("margin", [0.5, 2.0])
def test_inside_of_kept_blocks_the_promise_is_of_their_weights(margin: float, causal: bool) -> None:
    generator = torch.Generator().manual_seed(3)
    query, key, value = (3 * torch.randn(2, 2, n, 8, generator=generator).double() for n in (90, 150, 150))
    among = BlockTopK(0.5, 16)
    masses, counts = [], []
    for method in (BlockSkip(margin, among), among):
        _, aux = dynattn.attention(query, key, value, method, causal=causal, return_aux=True)
        s = reference.scores(query, key, None, causal, 8**-0.5, 60)
        masses.append(aux.kept_mass)
        counts.append(reference.select(s, method, query, key, 60, 8**-0.5).sum(-1))
    dropped = counts[1] - counts[0]
    least = torch.tensor([BlockSkip(margin, among).least_mass(int(d)) for d in dropped.flatten()]).view_as(dropped)
    assert (masses[0] >= masses[1] * least - 1e-9).all()
    assert (masses[0] < least).any()  # of all weights nothing is promised
    assert dropped.any()


def test_the_promise_is_nearly_met_where_all_that_is_dropped_lies_at_the_margin() -> None:
    scores = torch.full((1, 1, 1, 16 * 20), -3.0 - 1e-9, dtype=torch.float64)
    scores[..., :16] = -100.0
    scores[..., 5] = 0.0
    kept = BlockSkip(3.0).choose(scores, Rows(scores, scores, 0, 1.0))
    mass = scores.softmax(-1)[kept].sum()
    assert int(kept.sum()) == 16
    bound = BlockSkip(3.0).least_mass(16 * 19)
    assert bound * (1 - 1e-6) <= mass <= 1.001 * bound


def test_what_comes_first_decides() -> None:
    """A run of large scores drops smaller ones behind it, and not those before it."""
    scores = torch.zeros(1, 1, 1, 48)
    scores[..., 16:32] = 5.0
    kept = BlockSkip(2.0).choose(scores, Rows(scores, scores, 0, 1.0))
    assert kept[0, 0, 0].tolist() == [True] * 32 + [False] * 16


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_is_kept(bad: float) -> None:
    scores = torch.zeros(1, 1, 1, 64)
    scores[..., 20] = bad
    kept = BlockSkip(2.0).choose(scores, Rows(scores, scores, 0, 1.0))
    assert kept[0, 0, 0].tolist() == [True] * 32 + [False] * 32


def test_names_and_refusals() -> None:
    assert parse("blockskip-6.0") == BlockSkip(6.0)
    assert BlockSkip(6.25).name == "blockskip-6.25"
    assert parse(BlockSkip(1e-5).name) == BlockSkip(1e-5)
    with pytest.raises(TypeError, match=r"BlockSkip: margin must be a float: got 6; try BlockSkip\(6.0\)"):
        BlockSkip(6)  # pyright: ignore[reportArgumentType]
    for margin in (-1.0, math.nan, math.inf, 1001.0):
        with pytest.raises(ValueError, match="BlockSkip: margin must be between 0 and 1000"):
            BlockSkip(margin)
    with pytest.raises(ValueError, match="short name"):
        parse("blockskip-6")


def test_names_with_a_method_of_blocks() -> None:
    similar = BlockSkip(4.0, BlockMass(0.98, 64, "similar"))
    assert similar.name == "blockskip-4.0-in(blockmass-0.98-b64-similar)"
    assert parse(similar.name) == similar
    joined = BlockSkip(4.0, Intersection((BlockTopK(0.5, 32), BlockMass(0.9, 32))))
    for method in (
        joined, Union((similar, Window(3))), Intersection((joined, similar)),
        PerHead((similar, similar, joined, NM(1, 2))), Intersection((BlockTopK(0.5, 32), similar)),
    ):  # fmt: skip
        assert parse(method.name) == method
    assert BlockSkip(4.0, BlockTopK(0.5, 48, window=0)).rows_together == 48
    assert not BlockSkip(4.0).looks_at_positions
    assert similar.looks_at_positions
    assert not BlockSkip(4.0, BlockTopK(0.5, 48, window=0)).looks_at_positions


@pytest.mark.parametrize(
    "among",
    [
        BlockTopK(0.5, 8), BlockTopK(0.5, 24), BlockTopK(0.5, 4), TopK(ratio=0.5), BlockSkip(2.0),
        BlockSkip(2.0, BlockTopK(0.5, 16)), Intersection((NM(1, 2), BlockTopK(0.5, 16))),
        PerHead((BlockTopK(0.5, 16),)), Union((BlockTopK(0.5, 16), BlockTopK(0.5, 32))),
        Union((BlockTopK(0.5, 16), NM(1, 2))),
        *(both((BlockTopK(0.5, 16), Window(40))) for both in (Union, Intersection)),
    ],
    ids=str,
)  # fmt: skip
def test_other_methods_than_those_of_whole_blocks_are_refused(among: PairMethod) -> None:
    with pytest.raises(
        ValueError, match="BlockSkip: among must keep whole blocks, of a multiple of 16 queries and keys"
    ):
        BlockSkip(4.0, among)
    with pytest.raises(ValueError, match="BlockSkip: among must keep whole blocks"):
        parse(f"blockskip-4.0-in({among.name})")


def test_what_is_no_method_is_refused() -> None:
    with pytest.raises(TypeError, match="BlockSkip: among must be a method of whole blocks, or None: got 'topk-3'"):
        BlockSkip(4.0, "topk-3")  # pyright: ignore[reportArgumentType]
    for name in ("blockskip-4.0-in()", "blockskip-4.0-in(nothing)", "blockskip-4.0-in", "blockskip-4.0-in(dense"):
        with pytest.raises(ValueError, match="short name"):
            parse(name)
