"""Few queries in bfloat16 by products of pairs (pair_rows.h), against the reference in float64, at sizes where pairs,
tiles, lists and heads end. The portable build has such products everywhere, AVX-512's where the processor has them."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from dynattn.methods import NM
from tests.covering import part
from tests.kernels.cpu.nm.few import LONG, check_masks, check_not_finite, identify

METHODS = [
    NM(1, 1), NM(1, 2), NM(2, 4), NM(1, 4), NM(3, 5), NM(5, 31), NM(1, 2, stride=16), NM(2, 4, stride=3),
    NM(1, 2, window=9, sinks=5), NM(2, 4, window=40, sinks=3),
]  # fmt: skip
# heads, kv_heads, head_dim, value_dim: the last two are whole pairs in no build, in the portable one and in both.
HEADS = [
    (1, 1, 64, 64), (3, 1, 32, 96), (4, 2, 128, 128), (5, 1, 96, 160), (8, 1, 64, 32), (2, 2, 80, 72), (6, 2, 20, 36),
]  # fmt: skip
LENGTHS = [1, 3, 63, 64, 65, 130, 700, 2500]  # the last has several ranges of keys


@pytest.fixture
def tensors(grid):
    """Queries and keys whose products are exact, so that the choice is certain, all in bfloat16."""
    return lambda *sizes, **options: tuple(x.bfloat16() for x in grid(*sizes, **options))


@pytest.mark.parametrize(
    ("method", "sizes", "kv_len", "q_len"),
    part(itertools.product(METHODS, HEADS, LENGTHS, [1, 2, 3, 8]), 11),
    ids=identify,
)
def test_matches_the_reference(method, sizes, kv_len, q_len, isa, tensors, check):
    heads, kv_heads, head_dim, value_dim = sizes
    check(*tensors(heads, kv_heads, q_len, kv_len, head_dim, value_dim), method, isa, causal=kv_len > 64)


@pytest.mark.parametrize("heads", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("method", METHODS, ids=identify)
def test_what_is_not_finite_stays_with_those_that_keep_it(method, heads, isa, tensors, check):
    """Rows are weighed together, of which one does not keep what another keeps."""
    check_not_finite(tensors(heads, 1, 1, LONG, 64, 128), (2, 100, 3), check, method, isa)


@pytest.mark.parametrize("method", METHODS[:3], ids=identify)
def test_scores_that_are_not_finite_reach_their_rows(method, isa, tensors, check):
    query, key, value = tensors(6, 2, 1, LONG, 64, 64)
    key[:, 0, 90, 5], query[:, 4, 0, 3] = math.nan, math.inf
    check(query, key, value, method, isa)


@pytest.mark.parametrize("method", METHODS[:4], ids=identify)
@pytest.mark.parametrize("share", [0.3, 0.8, 0.98])
def test_masks_that_leave_some_keys(method, share, isa, tensors, check):
    check_masks(tensors(4, 1, 2, LONG, 64, 64, batch=2), share, check, method, isa)


def test_equal_values_give_their_mean(isa, forward):
    """Weights that bfloat16 does not hold, all rounded to one side as far as that goes, are divided by their sum as
    rounded, so that nothing is lost of a value."""
    query, key = torch.ones(1, 4, 1, 64).bfloat16(), torch.full((1, 1, 500, 64), -1 / 64).bfloat16()  # in one range
    key[..., 0, :] = 1 / 64
    for value in (1.0, 1.9921875, -317.0):
        values = torch.full((1, 1, 500, 64), value).bfloat16()
        out = forward(query, key, values, NM(1, 1), isa, scale=-math.log(0.5018) / 2).out
        assert (out == values[0, 0, 0, 0]).all()


def test_the_logsumexp_is_of_weights_as_they_were(isa, forward):
    generator = torch.Generator().manual_seed(0)
    query, key, value = (
        torch.randn(1, h, n, 64, generator=generator).bfloat16() for h, n in ((4, 2), (2, 900), (2, 900))
    )
    got = forward(query, key, value, NM(1, 1), isa).logsumexp.double()
    scores = query.double() @ key.double().repeat_interleave(2, 1).mT / 8
    assert (got - scores.logsumexp(-1)).abs().max() < 2e-6


@pytest.mark.parametrize("method", METHODS[:3], ids=identify)
def test_rows_that_are_weighed_together_have_their_own_answers(method, isa, forward):
    """Heads of one key head. What others keep decides which of a row's keys are a pair, and so may change a last bit of
    its output, but nothing of what it keeps; threads change nothing."""
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(1, 7, 2, 64, generator=generator).bfloat16()
    key, value = (torch.randn(1, 1, 3000, 64, generator=generator).bfloat16() for _ in range(2))
    together = forward(query, key, value, method, isa)
    for head in range(7):
        alone = forward(query[:, head : head + 1], key, value, method, isa)
        for got, want in zip(alone[1:], together[1:], strict=True):
            assert torch.equal(got[:, 0], want[:, head])
        torch.testing.assert_close(alone.out[:, 0], together.out[:, head], rtol=2.0**-7, atol=1e-6)
    torch.set_num_threads(2)
    assert all(torch.equal(a, b) for a, b in zip(forward(query, key, value, method, isa), together, strict=True))


@pytest.mark.parametrize("method", [NM(1, 1), NM(1, 2)], ids=identify)
def test_errors_are_those_of_rounding(method, isa, forward):
    """On normal numbers, where near-ties of 1:2 are few: at most twice those of weights that plain PyTorch rounds."""
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(1, 8, 3, 128, generator=generator).bfloat16()
    key, value = (torch.randn(1, 2, 1200, 128, generator=generator).bfloat16() for _ in range(2))
    keys, values = (x.double().repeat_interleave(4, 1) for x in (key, value))
    scores = query.double() @ keys.mT / 128**0.5
    if method.m == 2:
        scores = scores.masked_fill(scores < scores.unflatten(-1, (-1, 2)).amax(-1).repeat_interleave(2, -1), -math.inf)
    weights = scores.softmax(-1)
    exact = weights @ values
    plain = weights.bfloat16() @ values.bfloat16()
    got = forward(query, key, value, method, isa).out
    assert (got.double() - exact).abs().max() <= 2 * (plain.double() - exact).abs().max() + 2.0**-9 * exact.abs().max()
