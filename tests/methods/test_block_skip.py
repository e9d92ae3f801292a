"""Blocks skipped by running maxima, against the rule by loops; and what every query keeps at least."""

from __future__ import annotations

import math

import pytest
import torch

import dynattn
from dynattn import BlockSkip
from dynattn.methods import Rows, parse
from dynattn.reference import pairs as reference
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


@pytest.mark.parametrize("margin", [0.0, 1.7, 3.2])
def test_the_rule_by_loops(margin: float) -> None:
    agrees(BlockSkip(margin), rule(margin), [(13, 70), (5, 40), (1, 1), (40, 20), (1, 50)])


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
