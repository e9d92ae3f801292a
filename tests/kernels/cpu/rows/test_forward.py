"""The kernels of rows that choose by their own scores, against the definition: top-k, thresholds and mass."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dynattn.kernels import cpu
from dynattn.kernels.pattern import Pattern
from dynattn.maths.selection import largest
from dynattn.methods import NM, Mass, Rows, Threshold, TopK
from dynattn.reference import pairs as reference
from tests.kernels.cpu.masks import masks

pytestmark = pytest.mark.skipif(not cpu.is_available(), reason=cpu.unavailable_reason() or "")

METHODS = [
    TopK(k=1), TopK(k=17), TopK(k=10_000), TopK(ratio=0.25), TopK(ratio=0.25, floor=0), TopK(ratio=1 / 3),
    TopK(ratio=0.9, floor=100), Threshold(0.02), Mass(0.9137), Mass(0.413), Mass(1.0),
]  # fmt: skip
SHAPES = [  # heads, kv_heads, q_len, kv_len, head_dim, value_dim
    (1, 1, 1, 1, 1, 1),
    (2, 1, 7, 63, 8, 8),
    (4, 2, 65, 111, 20, 36),
    (1, 1, 130, 64, 64, 64),
    (2, 2, 13, 257, 32, 80),
    (1, 1, 5, 129, 5, 256),
    (1, 1, 3, 66, 256, 128),
    (1, 1, 20, 300, 512, 257),
    (2, 1, 5, 130, 257, 511),
    (4, 2, 1, 150, 24, 40),
    (1, 1, 9, 1300, 8, 64),
    (2, 1, 200, 190, 16, 24),
]


def chosen(row: Tensor, method: TopK | Threshold | Mass, isa: str) -> Tensor:
    """What the kernel keeps of a row of scores, given as one key dimension: (length,), bool."""
    length, out, logsumexp = len(row), torch.empty(1, 1, 1, 1), torch.empty(1, 1, 1)
    thresholds = torch.empty(1, 1, 1), torch.empty(1, 1, 1, dtype=torch.int32)
    key = row.view(1, 1, length, 1)
    value = torch.zeros(1, 1, length, 1)
    cpu.row_forward(
        torch.ones(1, 1, 1, 1), key, value, None, out, logsumexp, None, None, None, thresholds, method.row_rule(),
        Pattern.of(NM(1, 1), False, 1.0), isa,
    )  # fmt: skip
    least, last = float(thresholds[0]), int(thresholds[1])
    return (row > least) | ((row == least) & (torch.arange(length) <= last))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("causal", [False, True])
def test_definition(shape: tuple[int, ...], causal: bool, isa: str, grid: Callable, check: Callable) -> None:
    query, key, value = grid(*shape)
    for number, (method, mask) in enumerate(itertools.product(METHODS, masks(*shape[2:4]))):
        check(query, key, value, method, isa, mask=mask, causal=causal, scale=-0.25 if number % 5 == 4 else 0.25)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype: torch.dtype, isa: str, grid: Callable, check: Callable) -> None:
    tensors = [x.to(dtype) for x in grid(4, 2, 65, 111, 20, 36)]
    for method in (TopK(ratio=0.25), Threshold(0.02), Mass(0.9137)):
        check(*tensors, method, isa, causal=True)


def rows_of_scores() -> dict[str, Tensor]:
    """Rows that searches by guessing have trouble with."""
    generator = torch.Generator().manual_seed(0)
    normal = torch.randn(2000, generator=generator)
    heavy = normal.sign() * (40 * torch.rand(2000, generator=generator)).exp()
    outlier = normal.clone()
    outlier[77] = 3e38
    outlier[78] = -3e38
    return {
        "normal": normal, "short": normal[:37], "long": torch.randn(70_000, generator=generator),
        "all equal": torch.full((700,), -3.5), "two values": (normal > 0).float(), "ascending": torch.arange(900.0),
        "descending": -torch.arange(900.0), "over 17 decades": heavy, "outliers": outlier,
        "tiny": normal * 1e-38, "zeros of both signs": torch.zeros(300).copysign(normal[:300]),
        "few values": normal.mul(2).round(),
        "neighbours": 1 + torch.randint(0, 40, (900,), generator=generator) * 2**-23,
        "half": torch.cat([torch.full((500,), 5.0), normal[:500]]),
    }  # fmt: skip


@pytest.mark.parametrize("kind", rows_of_scores())
def test_the_kth_largest_of_any_row(kind: str, isa: str) -> None:
    row = rows_of_scores()[kind]
    for k in {1, 2, 16, 17, len(row) // 8, len(row) // 2, len(row) - 1, len(row), len(row) + 5} - {0}:
        got = chosen(row, TopK(k=k), isa)
        assert torch.equal(got, largest(row, k)), k


def held(row: Tensor, kept: Tensor) -> Tensor:
    """The share of the dense weights that a choice holds."""
    return row.double().softmax(0)[kept].sum()


@pytest.mark.parametrize("kind", rows_of_scores())
def test_the_mass_of_any_row(kind: str, isa: str) -> None:
    """The share is held, the last key kept is needed for it, and none that is dropped ranks before one kept."""
    row = rows_of_scores()[kind]
    for mass in (1e-6, 0.1, 0.5, 0.9, 0.95, 0.999, 0.99999):
        kept = chosen(row, Mass(mass), isa)
        assert torch.equal(kept, largest(row, int(kept.sum()))), mass
        last = kept & ~largest(row, int(kept.sum()) - 1)
        assert held(row, kept) >= mass - 2e-6
        assert held(row, kept & ~last) < mass + 2e-6 or kept.sum() == 1
        want = Mass(mass).choose(row.double().view(1, 1, 1, -1), Rows(row, row, 0, 1.0))[0, 0, 0]
        if (row.double().softmax(0)[kept ^ want] > 4e-6).any():
            assert torch.equal(kept, want), mass


def test_thresholds_between_neighbouring_floats(isa: str) -> None:
    """Scores so large that the next lower ones are 64 and 128 below, where a weight still tells them apart."""
    for size in (2.0**30, -(2.0**30) - 1024):
        row = torch.cat([torch.full((20,), size - 64 * step * (1 if size > 0 else 2)) for step in range(4)])
        s = row.double().view(1, 1, 1, -1)
        for least in (1e-20, 1e-30, 1e-40):
            want = Threshold(least).choose(s, Rows(s, s, 0, 1.0))[0, 0, 0]
            assert torch.equal(chosen(row, Threshold(least), isa), want)


def test_what_is_not_there_has_no_weight(isa: str, grid: Callable, check: Callable) -> None:
    """With a tiny scale no score is so low that its weight is 0."""
    for method in (Threshold(0.3), Threshold(0.02), Mass(0.9137)):
        check(*grid(1, 1, 5, 3, 8, 8), method, isa, scale=1.2e-38)
        check(*grid(1, 1, 5, 40, 8, 8), method, isa, scale=1.2e-38, causal=True)


def test_equal_weights_are_counted(isa: str) -> None:
    """By division where they are more than a vector, one by one where they are fewer: the lower keys are kept."""
    for length in (1, 4, 8, 16, 20, 64, 1000):
        for mass, share in ((0.25, 4), (0.5, 2), (0.75, 4 / 3), (0.001, 1000)):
            kept = chosen(torch.full((length,), 2.5), Mass(mass), isa)
            count = math.ceil(round(length / share, 6))
            assert kept.tolist() == [True] * count + [False] * (length - count), (length, mass)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_rows_with_many_ties(data: st.DataObject) -> None:
    isa = data.draw(
        st.sampled_from([name for name in ("avx512", "avx2", "neon", "portable") if cpu.isa_available(name)])
    )
    numbers = st.sampled_from([0.0, -0.0, 1.0, 1.0 + 2**-23, -2.5, 7.0, 1e-40, 3e38, -3e38])
    row = torch.tensor(data.draw(st.lists(numbers, min_size=1, max_size=200)))
    k = data.draw(st.integers(1, len(row) + 1))
    assert torch.equal(chosen(row, TopK(k=k), isa), largest(row, k))
    least = data.draw(st.sampled_from([0.0, 1e-3, 0.05, 0.3, 0.9]))
    weights = row.double().softmax(0)
    if not torch.isclose(weights, torch.tensor(least).double(), rtol=1e-5, atol=1e-40).any():
        want = (weights > least) | (torch.arange(len(row)) == int(row.argmax()))
        assert torch.equal(chosen(row, Threshold(least), isa), want)
    mass = data.draw(st.sampled_from([1e-3, 0.3, 0.7, 0.9, 0.99]))
    held = weights.sort(descending=True, stable=True).values.cumsum(0)
    if not torch.isclose(held, torch.tensor(mass).double(), rtol=1e-5, atol=1e-5).any():
        assert torch.equal(chosen(row, Mass(mass), isa), largest(row, int((held < mass).sum()) + 1))


@pytest.mark.parametrize("method", [TopK(k=3), TopK(ratio=0.2), Threshold(0.1), Mass(0.7137), Mass(1.0)])
def test_nan_and_infinity(method: TopK | Threshold | Mass, isa: str, grid: Callable, check: Callable) -> None:
    query, key, value = grid(2, 2, 15, 90, 8, 20)
    value[0, 0, 5, 3], value[0, 1, 7, 19] = math.nan, -math.inf  # reach the rows that keep them, and no others
    check(query, key, value, method, isa)
    check(query, key, value, method, isa, causal=True)
    for bad in (math.nan, math.inf, -math.inf):
        key[0, 1, 40, 2] = bad
        for mask in (None, torch.arange(90).view(1, 1, 1, 90) != 40):
            check(query, key, value, method, isa, mask=mask)
    query[0, 1, 7, 3], query[0, 0, 14, 0] = math.inf, -math.inf
    for causal in (False, True):
        check(query, key, value, method, isa, causal=causal)


def test_of_several_infinite_scores_the_first_are_kept(isa: str, forward: Callable) -> None:
    """So a NaN that comes later than k infinities is dropped; all of them poison the row."""
    row = torch.tensor([1.0, math.inf, 2.0, math.inf, math.nan, 3.0])
    query, value = torch.ones(1, 1, 1, 1), torch.ones(1, 1, 6, 1)
    for k, want in ((1, math.inf), (2, math.inf), (3, math.nan)):
        got = forward(query, row.view(1, 1, 6, 1), value, TopK(k=k), isa, scale=1.0)
        exact = reference.forward(query, row.view(1, 1, 6, 1), value, TopK(k=k), scale=1.0)
        assert got.out.isnan().all()
        assert int(got.kept) == k
        torch.testing.assert_close(got.logsumexp, torch.full((1, 1, 1), want), equal_nan=True)
        torch.testing.assert_close(exact.logsumexp, got.logsumexp, equal_nan=True)


@pytest.mark.parametrize("method", [Threshold(0.3), Mass(0.9137)])
def test_by_weight_one_of_several_infinite_scores_is_kept(
    method: Threshold | Mass, isa: str, forward: Callable
) -> None:
    """The first NaN or, where there is none, the first infinity."""
    query, value = torch.ones(1, 1, 1, 1), torch.zeros(1, 1, 150, 1)
    for infinite, nan in (((3, 70), (64, 65)), ((3, 70), ()), ((), (1, 149)), ((140,), (0,))):
        key = torch.linspace(0, 1, 150).view(1, 1, 150, 1).clone()
        key[..., infinite, :], key[..., nan, :] = math.inf, math.nan
        got = forward(query, key, value, method, isa, scale=1.0)
        assert got.out.isnan().all()
        assert int(got.kept) == 1


def test_instruction_sets_choose_the_same(grid: Callable, forward: Callable) -> None:
    query, key, value = grid(2, 1, 70, 300, 16, 16, seed=3)
    for method, mask in itertools.product(METHODS, masks(70, 300)):
        found = [
            forward(query, key, value, method, isa, mask=mask, causal=True)
            for isa in ("avx512", "avx2", "neon", "portable")
            if cpu.isa_available(isa)
        ]
        for other in found[1:]:
            assert torch.equal(other.kept, found[0].kept)
            torch.testing.assert_close(other.out, found[0].out, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("method", [TopK(ratio=0.25), Mass(0.9)])
def test_threads_change_no_bit(method: TopK | Mass, forward: Callable) -> None:
    torch.manual_seed(0)
    query, key, value = torch.randn(2, 4, 300, 32), torch.randn(2, 2, 500, 32), torch.randn(2, 2, 500, 48)
    found = []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        found.append(forward(query, key, value, method, cpu.best_isa(), causal=True))
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


def test_strides(isa: str, forward: Callable) -> None:
    torch.manual_seed(0)
    query, key, value = torch.randn(2, 40, 4, 20), torch.randn(2, 70, 2, 23)[..., :20], torch.randn(2, 2, 70, 24)[:1]
    views = query.transpose(1, 2), key.transpose(1, 2), value.expand(2, -1, -1, -1)
    plain = forward(*(x.contiguous() for x in views), TopK(k=9), isa)
    for got, want in zip(forward(*views, TopK(k=9), isa), plain, strict=True):
        assert torch.equal(got, want)


@pytest.mark.parametrize(
    ("wrong", "value"),
    [
        ("most", 0), ("floor", -1), ("numerator", 0), ("denominator", 2_000_000), ("weight", 1.0), ("mass", 1.5),
        ("mass", -0.1), ("mass", math.nan),
    ],
)  # fmt: skip
def test_a_rule_that_makes_no_sense_is_refused(wrong: str, value: float) -> None:
    rule = TopK(ratio=0.25).row_rule()._replace(**{wrong: value})
    x, rows = torch.ones(1, 1, 2, 4), torch.empty(1, 1, 2)
    with pytest.raises(RuntimeError, match="an argument is out of its range"):
        cpu.row_forward(
            x, x, x, None, x.clone(), rows, None, None, None, (rows, rows.int()), rule,
            Pattern.of(NM(1, 1), False, 1.0), cpu.best_isa(),
        )  # fmt: skip
