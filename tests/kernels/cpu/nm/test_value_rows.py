"""Values for a few queries, read in place or converted (value_rows.h), against the reference in float64, at sizes where
vectors, pieces of rows, rows at once, tiles, ranges and heads end."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from dynattn.kernels import cpu
from dynattn.kernels.pattern import Pattern
from dynattn.methods import NM
from tests.covering import part
from tests.kernels.cpu.nm.few import LONG, check_masks, check_not_finite, identify

METHODS = [
    NM(1, 1), NM(1, 2), NM(2, 4), NM(1, 4), NM(3, 5), NM(5, 31), NM(1, 2, stride=16), NM(1, 2, window=9, sinks=5),
]  # fmt: skip
# heads, kv_heads, head_dim, value_dim
HEADS = [
    (1, 1, 64, 1), (2, 1, 8, 17), (3, 1, 32, 160), (8, 2, 20, 320), (4, 1, 8, 512), (8, 1, 64, 64), (6, 2, 16, 36),
    (5, 1, 12, 96), (7, 1, 16, 132),
]  # fmt: skip
LENGTHS = [1, 63, 64, 65, 192, 700, 2500]  # the last two have several ranges of keys
DTYPES = [torch.float32, torch.float16]


@pytest.fixture(params=DTYPES, ids=["float32", "float16"])
def dtype(request):
    return request.param


@pytest.fixture
def tensors(grid, dtype):
    """Queries and keys whose products are exact, so that the choice is certain."""
    return lambda *sizes, **options: tuple(x.to(dtype) for x in grid(*sizes, **options))


def in_pages(rows: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
    """The keys or values of one text in pages of 16, page j at place ``order[j]``. What is left over is poisoned."""
    pages = torch.full((len(order), rows.shape[1], 16, rows.shape[3]), math.nan, dtype=rows.dtype)
    for number, place in enumerate(order):
        some = rows[0, :, number * 16 : (number + 1) * 16]
        pages[place, :, : some.shape[1]] = some
    return pages


def normal(dtype: torch.dtype, *shapes: tuple[int, ...]) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]


@pytest.mark.parametrize(
    ("method", "sizes", "kv_len", "q_len"),
    part(itertools.product(METHODS, HEADS, LENGTHS, range(1, 7)), 53),
    ids=identify,
)
def test_matches_the_reference(method, sizes, kv_len, q_len, isa, tensors, check):
    heads, kv_heads, head_dim, value_dim = sizes
    check(*tensors(heads, kv_heads, q_len, kv_len, head_dim, value_dim), method, isa, causal=kv_len > 64)


@pytest.mark.parametrize("heads", range(1, 9))
@pytest.mark.parametrize("method", METHODS[:4], ids=identify)
def test_what_is_not_finite_stays_with_those_that_keep_it(method, heads, isa, tensors, check):
    """Rows are weighed together, of which one does not keep what another keeps, in one part of a value and not in
    another."""
    check_not_finite(tensors(heads, 1, 1, LONG, 8, 160), (2, 100, 159), check, method, isa)


@pytest.mark.parametrize("method", METHODS[:4], ids=identify)
@pytest.mark.parametrize("q_len", [1, 4])
def test_a_choice_drops_what_is_not_finite(method, q_len, isa, tensors, check):
    """Without a mask: rows choose, and some leave out what others take."""
    query, key, value = tensors(6, 2, q_len, 700, 16, 132)
    value[..., 5::9, 40], value[..., 2::31, 131] = math.inf, math.nan
    check(query, key, value, method, isa)


@pytest.mark.parametrize("method", METHODS[:3], ids=identify)
def test_scores_that_are_not_finite_reach_their_rows(method, isa, tensors, check):
    query, key, value = tensors(6, 2, 1, LONG, 64, 64)
    key[:, 0, 90, 5], query[:, 4, 0, 3] = math.nan, math.inf
    check(query, key, value, method, isa)


@pytest.mark.parametrize("method", METHODS[:4], ids=identify)
@pytest.mark.parametrize("share", [0.3, 0.8, 0.98])
def test_masks_that_leave_some_keys(method, share, isa, tensors, check):
    check_masks(tensors(4, 1, 2, LONG, 16, 36, batch=2), share, check, method, isa)


@pytest.mark.parametrize("value_dim", [17, 64, 160])
@pytest.mark.parametrize("method", METHODS[:4], ids=identify)
def test_rows_that_are_weighed_together_have_the_bits_of_each_alone(method, value_dim, isa, dtype, forward):
    """Heads of one key head. What a row does not keep adds nothing to its sums, whose order stays; threads change
    nothing."""
    query, key, value = normal(dtype, (1, 7, 2, 64), (1, 1, 3000, 64), (1, 1, 3000, value_dim))
    together = forward(query, key, value, method, isa)
    for head in range(7):
        alone = forward(query[:, head : head + 1, 1:], key, value, method, isa)
        for got, want in zip(alone, together, strict=True):
            assert torch.equal(got[:, 0, 0], want[:, head, 1])
    torch.set_num_threads(2)
    assert all(torch.equal(a, b) for a, b in zip(forward(query, key, value, method, isa), together, strict=True))


@pytest.mark.parametrize("value_dim", [17, 64])
@pytest.mark.parametrize("method", METHODS[:4], ids=identify)
def test_heads_side_by_side_have_the_bits_of_heads_apart(method, value_dim, isa, dtype, forward):
    """Of (tokens, heads, dim) a task takes several heads, tile by tile, and asks for the next head's rows."""
    torch.set_num_threads(1)
    query, *rows = normal(dtype, (1, 8, 1, 64), (1, 3010, 4, 64), (1, 3010, 4, value_dim))
    key, value = (x.transpose(1, 2) for x in rows)
    want = forward(query, key.contiguous(), value.contiguous(), method, isa)
    assert all(torch.equal(a, b) for a, b in zip(forward(query, key, value, method, isa), want, strict=True))


@pytest.mark.parametrize("q_len", [1, 5])
@pytest.mark.parametrize("method", METHODS[:4], ids=identify)
def test_pages_have_the_bits_of_keys_one_after_another(method, q_len, isa, dtype, forward):
    query, key, value = normal(dtype, (1, 6, q_len, 20), (1, 2, 1303, 20), (1, 2, 1303, 36))
    want = forward(query, key, value, method, isa)
    order = torch.randperm(82, generator=torch.Generator().manual_seed(1))
    got = [torch.full_like(x, -2) for x in want]
    out, logsumexp, kept_mass, kept, allowed = got
    assert cpu.nm_texts(
        query, in_pages(key, order), in_pages(value, order), out, logsumexp, kept_mass, kept, allowed,
        Pattern.of(method, False, 20**-0.5), isa,
        query_start=torch.tensor([0, q_len]), key_start=torch.tensor([0]), key_count=torch.tensor([1303]),
        block_table=order.int()[None],
    )  # fmt: skip
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))
