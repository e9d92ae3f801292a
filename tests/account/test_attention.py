"""The account of attention calls: against counts by hand, and a cache simulated the slow way."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import dynattn
from dynattn import NM, EfficientAttention
from dynattn.account import Work, of_call, of_mixing, of_pairs
from dynattn.account.lru import misses
from dynattn.methods import parse
from dynattn.methods.base import Glance, PairMethod, Rows


@dataclass(frozen=True)
class Diagonal(PairMethod):
    """Keeps key i for query i; needs no scores for it, but reads 3 bytes a key."""

    @property
    def name(self) -> str:
        return "diagonal"

    @classmethod
    def from_name(cls, name: str) -> None:
        return None

    def choose(self, scores: Tensor, rows: Rows) -> Tensor:
        return torch.eye(scores.shape[3], dtype=torch.bool)[rows.offset :][: scores.shape[2]].expand_as(scores)

    def glance(self, head_dim: int, itemsize: int) -> Glance:
        return Glance(multiply_adds=0.5, key_bytes=3)


def tensors(q_len: int, kv_len: int, heads: int = 2, kv_heads: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    return torch.randn(2, heads, q_len, 8), torch.randn(2, kv_heads, kv_len, 8), torch.randn(2, kv_heads, kv_len, 8)


ROW = 8 * 4  # bytes of a row of K or V


def test_a_choice_by_score_pays_for_all_scores_and_another_for_its_glances() -> None:
    assert of_pairs(None, 100, 25, 8, 4) == Work(scores=100 * 8, values=25 * 4, exponentials=25)
    glancing = of_pairs(Glance(3, 0), 100, 25, 8, 4)
    assert glancing == Work(scores=25 * 8, choosing=100 * 3, values=25 * 4, exponentials=25)


@pytest.mark.parametrize("others", ["blocktopk-0.5-b16", "blocktopk-0.5-b16&blockmass-0.9-b16-bounds"])
@pytest.mark.parametrize("causal", [False, True])
def test_nm_inside_of_blocks_pays_for_the_scores_of_the_kept_blocks(others: str, causal: bool) -> None:
    query, key, value = tensors(96, 96)
    joined, blocks = (
        of_call(query, key, value, cast(PairMethod, parse(name)), causal=causal)
        for name in (f"nm-1-2-x8&{others}", others)
    )
    assert (joined.scores, joined.choosing) == (blocks.scores, blocks.choosing)
    assert blocks.scores < 2 * 2 * 96 * 96 * 8 / (1 + causal)  # of all pairs
    assert joined.exponentials < 0.7 * blocks.exponentials


@pytest.mark.parametrize("causal", [False, True])
def test_skips_inside_of_blocks_pay_for_the_scores_of_the_kept_blocks(causal: bool) -> None:
    query, key, value = (3 * x for x in tensors(96, 96))
    inside, blocks, alone = (
        of_call(query, key, value, cast(PairMethod, parse(name)), causal=causal)
        for name in ("blockskip-0.5-in(blocktopk-0.5-b16-bounds)", "blocktopk-0.5-b16-bounds", "blockskip-0.5")
    )
    assert (inside.scores, inside.choosing) == (blocks.scores, blocks.choosing)
    assert inside.exponentials < blocks.exponentials
    assert alone.scores == 2 * 2 * (96 * 97 // 2 if causal else 96 * 96) * 8
    assert alone.choosing == 0


def test_a_combination_that_asks_for_scores_inside_of_blocks_asks_for_all() -> None:
    """The account knows one set of scored pairs, and would take the kept ones for it."""
    for inside in ("blockskip-0.5-in(blocktopk-0.5-b16)", "(nm-1-2-x8&blocktopk-0.5-b16)"):
        joined = cast(PairMethod, parse(f"{inside}+blocktopk-0.5-b16"))
        assert joined.glance(8, 4) is None
        assert joined.scored is None


@pytest.mark.parametrize("block", [5, 48, 64, 100])
def test_choices_for_rows_together_are_not_cut(block: int) -> None:
    query, key, value = tensors(200, 200)
    method = parse(f"blocktopk-0.5-b{block}")
    _, aux = dynattn.attention(query, key, value, method, return_aux=True)
    kept = aux.density.double().sum().item() * 200 * 200
    assert of_call(query, key, value, cast(PairMethod, method)).exponentials == pytest.approx(kept)


def test_dense_in_a_large_cache_reads_everything_once() -> None:
    work = of_call(*tensors(100, 130), NM(1, 1))
    pairs = 2 * 2 * 100 * 130
    streamed = 2 * 2 * 100 * ROW
    assert work == Work(
        scores=pairs * 8, values=pairs * 8, exponentials=pairs,
        read=streamed + 2 * 2 * 2 * 130 * ROW, written=streamed,
    )  # fmt: skip


def test_half_the_pairs_of_one_query_read_half_of_the_values() -> None:
    work = of_call(*tensors(1, 128), NM(1, 2))
    assert work.values == work.exponentials * 8 == 2 * 2 * 64 * 8
    assert work.scores == 2 * 2 * 128 * 8
    assert work.read == 2 * 2 * ROW + 2 * 2 * (128 + 64) * ROW


def test_causal_and_masked_pairs_are_not_scored() -> None:
    causal = of_call(*tensors(64, 64), NM(1, 1), causal=True)
    assert causal.scores == 4 * (64 * 65 // 2) * 8
    mask = (torch.arange(64) < 10).view(1, 1, 1, 64)
    masked = of_call(*tensors(64, 64), NM(1, 1), attn_mask=mask)
    assert masked.scores == 4 * 64 * 10 * 8
    assert masked.read == 4 * (64 + 2 * 10) * ROW


def test_a_small_cache_reads_again_for_every_block_of_queries() -> None:
    small = of_call(*tensors(128, 128), NM(1, 1), cache_bytes=100 * ROW)
    assert small.read == 4 * (128 + 2 * 2 * 128) * ROW  # two blocks of queries, nothing survives from one to the next


def test_heads_that_share_keys_share_reads() -> None:
    shared = of_call(*tensors(64, 64, heads=6, kv_heads=2), NM(1, 1))
    assert shared.read == 2 * 6 * 64 * ROW + 2 * 2 * 2 * 64 * ROW
    assert shared.scores == 2 * 6 * 64 * 64 * 8


def test_a_choice_that_needs_no_scores_computes_the_kept_ones_alone() -> None:
    work = of_call(*tensors(64, 96), Diagonal())
    assert work.scores == work.values == 4 * 64 * 8
    assert work.choosing == 4 * 64 * 96 * 0.5
    assert work.read == 4 * 64 * ROW + 4 * (2 * 64 * ROW + 3 * 96)
    assert work.multiply_adds == work.scores + work.values + work.choosing


def test_unfused_writes_scores_and_weights_and_reads_them() -> None:
    fused, unfused = (of_call(*tensors(64, 64), NM(1, 1), fused=fused) for fused in (True, False))
    scores = 4 * 64 * 64 * 4
    assert unfused.bytes - fused.bytes == 4 * scores
    assert unfused.multiply_adds == fused.multiply_adds


@settings(deadline=None, max_examples=60)
@given(st.lists(st.sets(st.integers(0, 9), min_size=1).map(sorted), max_size=8), st.integers(1, 12))
def test_cache_replaces_what_was_used_longest_ago(reads: list[list[int]], capacity: int) -> None:
    held: list[int] = []  # the last used at the end
    missed = 0
    for row in (row for rows in reads for row in rows):
        missed += row not in held
        held = [*(other for other in held if other != row), row][-capacity:]
    assert misses([np.array(rows) for rows in reads], capacity) == missed


def test_work_adds_up() -> None:
    total = Work(scores=1, read=5) + Work(scores=2, linear=3, written=7)
    assert total == Work(scores=3, linear=3, read=5, written=7)
    assert (total.multiply_adds, total.bytes) == (6, 12)
    with pytest.raises(TypeError):
        total + 1  # pyright: ignore[reportOperatorIssue, reportUnusedExpression]


def test_mixing_methods_count_the_products_that_they_compute() -> None:
    work = of_mixing(*tensors(40, 50), EfficientAttention())
    assert work.multiply_adds == 4 * (40 + 50) * 8 * 8
    assert work.bytes == 4 * (40 + 50 + 50 + 40) * ROW


@pytest.mark.parametrize(
    ("name", "per_pair", "key_bytes"),
    [("window-5", 0, 0), ("fixed-0.5", 0, 0), ("random-0.5", 0, 0), ("blocktopk-0.5-b4", 8 / 16, 8 * 4 / 4),
     ("blocktopk-0.5-b16-bounds", 2 * 8 / 256, 2 * 8 * 4 / 16), ("blockmass-0.5-b64-sampled", 8 / 16, 8 * 4),
     ("blocktopk-0.5-b16-antidiagonal", 8 / 16, 8 * 4), ("blockmass-0.5-b4-sampled", 8 / 4, 8 * 4),
     ("blocktopk-0.5-b16-lowrank", 1, 8 * 4), ("blockmass-0.5-b4-runs", 8 / 4, 8 * 4),
     ("blockbound-0.5-b16", 2 * 8 / 16, 2 * 8 * 4 / 16),
     ("dsa-0.5-k0.25-int4", 2, 2 / 2 + 4), ("window-5+blocktopk-0.5-b4", 8 / 16, 8 * 4 / 4)],
)  # fmt: skip
def test_methods_that_need_no_exact_scores(name: str, per_pair: float, key_bytes: float) -> None:
    glance = cast(PairMethod, parse(name)).glance(head_dim=8, itemsize=4)
    assert glance == Glance(per_pair, key_bytes)


@pytest.mark.parametrize("name", ["nm-1-2", "topk-0.5", "threshold-0.1", "mass-0.9", "topk-3+window-4"])
def test_methods_that_need_the_exact_scores(name: str) -> None:
    assert cast(PairMethod, parse(name)).glance(8, 4) is None
