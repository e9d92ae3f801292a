"""What the estimates of blocks share, against the scores themselves."""

from __future__ import annotations

import math

import pytest
import torch

from dynattn.maths import estimate as module
from dynattn.maths.estimate import Input, blocks, in_blocks, log_shares, near, some_allowed, some_scored
from dynattn.maths.scores import scores

SIZE = 4


def call(q_len: int, kv_len: int, causal: bool, masked: bool) -> Input:
    generator = torch.Generator().manual_seed(q_len * 100 + kv_len)
    query = torch.randn(2, 4, q_len, 3, generator=generator, dtype=torch.float64)
    key = torch.randn(2, 2, kv_len, 3, generator=generator, dtype=torch.float64)
    mask = torch.rand(2, 1, 1, kv_len, generator=generator) < 0.4 if masked else None
    return Input(query, key, mask, causal, 0.5)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("q_len", "kv_len"), [(9, 9), (3, 14), (14, 3), (8, 8)])
def test_scores_of_some_queries_and_blocks_with_an_allowed_pair(
    q_len: int, kv_len: int, masked: bool, causal: bool
) -> None:
    given = call(q_len, kv_len, causal, masked)
    mask = given.attn_mask
    whole = scores(given.query, given.key, mask, causal, 0.5, given.offset)
    some = torch.tensor([0, q_len - 1, q_len // 2])
    torch.testing.assert_close(given.scores(some), whole[:, :, some])
    found = some_allowed(given, SIZE)
    want = some_scored(whole, SIZE)
    assert torch.equal(found.expand_as(want), want)


def test_steps_cover_all_rows_once_and_hold_no_more_than_they_may(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "AT_ONCE", 8 * 20 * 3)
    given = call(50, 20, False, False)
    steps = list(given.steps(SIZE, 20))
    assert [row for at in steps for row in range(at.start, at.stop)] == list(range(13))
    assert all(2 * 4 * 20 * (at.stop - at.start) <= module.AT_ONCE for at in steps)
    assert len(list(given.steps(SIZE, 1, parts=5))) >= 5
    assert given.of_rows(slice(12, 13), SIZE).tolist() == [48, 49]


def test_shares_are_those_of_the_softmax() -> None:
    s = torch.randn(1, 2, 8, 12, dtype=torch.float64)
    s[..., 3:5] = -math.inf
    found = log_shares(in_blocks(s, SIZE))
    want = s.softmax(-1).view(1, 2, 2, SIZE, 3, SIZE).sum((-1, -3)).log()
    torch.testing.assert_close(found, want)
    torch.testing.assert_close(found.exp().sum(-1), torch.full((1, 2, 2), float(SIZE), dtype=torch.float64))


def test_a_score_that_is_no_number_marks_its_own_block_alone() -> None:
    s = torch.randn(1, 1, 4, 12, dtype=torch.float64)
    clean = log_shares(in_blocks(s.clone().index_fill_(3, torch.arange(4, 8), -math.inf), SIZE))
    s[..., 1, 5] = torch.nan
    found = log_shares(in_blocks(s, SIZE)).flatten()
    assert found[1] == math.inf
    assert found[[0, 2]].isfinite().all()
    forbidden = log_shares(in_blocks(torch.full((1, 1, 4, 8), -math.inf), SIZE))
    assert (forbidden == -math.inf).all()
    assert clean.flatten()[1] == -math.inf


@pytest.mark.parametrize(("window", "sinks"), [(0, 0), (1, 0), (3, 2), (6, 5)])
@pytest.mark.parametrize(("q_len", "kv_len"), [(10, 10), (3, 11), (11, 3)])
def test_near_blocks_hold_a_near_pair(q_len: int, kv_len: int, window: int, sinks: int) -> None:
    offset = kv_len - q_len
    i, j = torch.arange(q_len).unsqueeze(1) + offset, torch.arange(kv_len)
    pair = ((i - j).abs() < window) | (j < sinks).expand(q_len, -1)
    rows = range(-(-q_len // SIZE))
    want = blocks(blocks(pair.double(), SIZE, 1), SIZE, 0).sum((1, 3)) > 0
    found = near(rows, offset, q_len, kv_len, SIZE, window, sinks)
    assert torch.equal(found, want)
