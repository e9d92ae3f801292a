"""Few queries whose rows choose by their own scores (few_queries.h), with keys and values read in place, against the
reference in float64: at sizes where vectors, tiles and ranges of keys end."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import dynattn
from dynattn.kernels import cpu
from dynattn.kernels.pattern import Pattern
from dynattn.methods import Mass, Rows, Threshold, TopK, parse
from dynattn.reference import pairs as reference
from tests.covering import part
from tests.kernels.cpu.masks import masks
from tests.kernels.cpu.rows.test_forward import METHODS, rows_of_scores

pytestmark = pytest.mark.skipif(not cpu.is_available(), reason=cpu.unavailable_reason() or "")

CHOICES = [TopK(k=17), TopK(ratio=0.1), Threshold(0.002), Mass(0.9137)]
SHAPES = [  # heads, kv_heads, q_len, kv_len, head_dim, value_dim
    (1, 1, 1, 1, 1, 1),
    (2, 1, 3, 63, 8, 8),
    (4, 2, 1, 150, 24, 40),
    (1, 1, 5, 129, 5, 256),
    (2, 1, 2, 300, 257, 511),
    (3, 3, 6, 513, 64, 64),
    (6, 2, 2, 1101, 20, 36),
    (5, 1, 1, 700, 128, 80),
    (1, 1, 7, 64, 512, 512),  # packed, as values are not wide where there are no pairs, and in place
    (2, 1, 12, 600, 16, 80),
    (2, 2, 1, 2500, 64, 64),
    (2, 1, 4, 3, 8, 8),
]
LONG = 1300  # keys: several ranges and tiles


@pytest.fixture
def alone(check: Callable) -> Callable[..., None]:
    """Held against the reference as where no gradient follows."""
    return lambda *arguments, **options: check(*arguments, alone=True, **options)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("causal", [False, True])
def test_definition(shape: tuple[int, ...], causal: bool, isa: str, grid: Callable, alone: Callable) -> None:
    query, key, value = grid(*shape)
    for number, (method, mask) in enumerate(itertools.product(METHODS, masks(*shape[2:4]))):
        alone(query, key, value, method, isa, mask=mask, causal=causal, scale=-0.25 if number % 5 == 4 else 0.25)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("method", "shape"),
    part(
        itertools.product(
            CHOICES,
            [  # the last three are whole pairs in the portable build alone, in none, and in all
                (1, 1, 1, 700, 64, 64), (3, 1, 1, 1100, 32, 96), (4, 2, 2, 513, 128, 128), (5, 1, 1, 65, 96, 160),
                (8, 1, 2, 130, 64, 32), (2, 2, 3, 600, 80, 72), (6, 2, 1, 600, 20, 36), (9, 1, 1, 1500, 64, 64),
            ],
        ),
        3,
    ),
)  # fmt: skip
def test_half_precision(
    method: TopK | Threshold | Mass,
    shape: tuple[int, ...],
    dtype: torch.dtype,
    isa: str,
    grid: Callable,
    alone: Callable,
) -> None:
    alone(*(x.to(dtype) for x in grid(*shape, batch=2)), method, isa, causal=True)


@pytest.mark.parametrize("kind", ["bool", "padding", "float", "bfloat16", "transposed", "nothing"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_masks(kind: str, dtype: torch.dtype, isa: str, grid: Callable, alone: Callable) -> None:
    generator = torch.Generator().manual_seed(1)
    for q_len, method in ((1, CHOICES[0]), (3, CHOICES[1]), (2, CHOICES[2]), (5, CHOICES[3])):
        tensors = [x.to(dtype) for x in grid(4, 2, q_len, LONG, 32, 32, batch=2)]
        allowed = torch.rand(2, 4, q_len, LONG, generator=generator) > 0.4
        allowed[0, 1, 0] = False  # a row with nothing allowed
        allowed[1, 2, 0, 64:] = False  # ranges with nothing allowed
        allowed[0, 2:, :, 500:] = False  # and for all rows of a key head
        bias = (
            torch.randint(-3, 4, (1, 4, q_len, LONG), generator=generator).float().masked_fill(~allowed[:1], -math.inf)
        )
        mask = {
            "bool": allowed,
            "padding": torch.arange(LONG) >= torch.tensor([0, 900]).view(2, 1, 1, 1),
            "float": bias,
            "bfloat16": bias.bfloat16(),
            "transposed": bias.mT.contiguous().mT,
            "nothing": torch.zeros(1, 1, 1, 1, dtype=torch.bool),
        }[kind]
        alone(*tensors, method, isa, mask=mask, causal=True)


@pytest.mark.parametrize("name", ["topk-25", "topk-0.2-f0", "threshold-0.003", "mass-0.81"])
@pytest.mark.parametrize("beside", ["+window-40-s4", "+window-9-s600", "&window-300-s2", "&window-33"])
def test_a_window_beside(name: str, beside: str, isa: str, grid: Callable) -> None:
    """Joined to what a row keeps, or cutting it down, with the largest scores out of its reach."""
    method = parse(name + beside)
    for number, dtype in itertools.product(range(3), (torch.float32, torch.bfloat16)):
        query, key, value = grid(4, 2, (1, 3, 6)[number], LONG, 32, 32)
        query[..., 0], key[..., 0] = 1, 0
        if number == 2 and beside[0] == "&":
            key[:, :, [3, 5, 640], 0] = 4096.0
        mask = (torch.rand(LONG, generator=torch.Generator().manual_seed(3)) > 0.3) if number else None
        results = []
        for backend in (f"cpu-{isa}", "reference"):
            kind = torch.float64 if backend == "reference" else dtype
            results.append(
                dynattn.attention(
                    query.to(kind), key.to(kind), value.to(dtype).to(kind), method, attn_mask=mask, causal=True,
                    scale=0.5, backend=backend, return_aux=True,
                )
            )  # fmt: skip
        (got, aux), (want, exact) = results
        close = 2e-5 if dtype == torch.float32 else 0.03
        torch.testing.assert_close(got.double(), want, rtol=close, atol=close)
        torch.testing.assert_close(aux.density, exact.density.to(aux.density.dtype))
        torch.testing.assert_close(aux.kept_mass.double(), exact.kept_mass, rtol=2e-5, atol=2e-5)
        torch.testing.assert_close(aux.logsumexp.double(), exact.logsumexp, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("kind", rows_of_scores())
def test_any_row_is_chosen_as_packed_rows_are(kind: str, isa: str, forward: Callable) -> None:
    """From one-dimensional keys, whose scores are the same on both paths."""
    row = rows_of_scores()[kind]
    key, query = row.view(1, 1, -1, 1), torch.ones(1, 1, 1, 1)
    value = torch.linspace(-1, 1, len(row)).view(1, 1, -1, 1).sin()
    for method in (TopK(k=1), TopK(k=17), TopK(ratio=0.1), TopK(ratio=0.9), Threshold(1e-3), Mass(0.5), Mass(0.999)):
        got, want = (forward(query, key, value, method, isa, scale=1.0, alone=one) for one in (True, False))
        assert torch.equal(got.kept, want.kept)
        assert torch.equal(got.allowed, want.allowed)
        for a, b in zip(got[:3], want[:3], strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_few_queries_choose_as_many_do(
    method: TopK | Threshold | Mass, isa: str, grid: Callable, forward: Callable
) -> None:
    """Where products are exact the two paths make the same choice, ties included."""
    query, key, value = grid(4, 2, 40, LONG, 64, 64)
    many, few = (forward(q, key, value, method, isa, alone=True) for q in (query, query[:, :, -3:]))
    assert torch.equal(few.kept, many.kept[:, :, -3:])
    torch.testing.assert_close(few.out, many.out[:, :, -3:], atol=2e-6, rtol=1e-5)
    torch.testing.assert_close(few.kept_mass, many.kept_mass[:, :, -3:], atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("method", CHOICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_cache(
    method: TopK | Threshold | Mass, dtype: torch.dtype, isa: str, grid: Callable, alone: Callable
) -> None:
    """Length first, a part of a longer cache whose other slots hold NaN, one element off any alignment."""

    def lay(x: Tensor) -> Tensor:
        slots = torch.nn.functional.pad(x.transpose(1, 2), (0, 1, 0, 0, 1, 70), value=math.nan).to(dtype)
        return slots[:, 1:-70, :, :-1].transpose(1, 2)

    for q_len in (1, 4):
        alone(*(lay(x) for x in grid(4, 2, q_len, 1300, 32, 64, batch=2)), method, isa)


@pytest.mark.parametrize("method", [TopK(k=3), TopK(ratio=0.2), Threshold(0.001), Mass(0.7137), Mass(1.0)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("q_len", [1, 4])
def test_nan_and_infinity(
    method: TopK | Threshold | Mass, dtype: torch.dtype, q_len: int, isa: str, grid: Callable, alone: Callable
) -> None:
    def tensors() -> list[Tensor]:
        return [x.to(dtype) for x in grid(4, 2, q_len, LONG, 32, 32)]

    query, key, value = tensors()
    mask = torch.ones(1, 4, q_len, LONG, dtype=torch.bool)
    mask[..., 1200:] = False  # slots of a cache not written yet
    key[..., 1200:, :], value[..., 1200:, :] = math.nan, math.inf
    mask[:, :2, :, 70] = False
    key[0, 0, 70, 3] = math.nan  # seen by no query head of its own
    alone(query, key, value, method, isa, mask=mask)
    key[0, 1, 71, 3] = math.nan
    query[0, 3, -1, 0] = math.inf
    alone(query, key, value, method, isa, mask=mask)
    query, key, value = tensors()
    value[0, 0, 71, 2], value[0, 0, 640, 31], value[0, 1, 1199, 5] = math.inf, -math.inf, math.nan
    alone(query, key, value, method, isa, causal=True)
    for bad in (math.nan, math.inf, -math.inf):
        query, key, value = tensors()
        key[0, 1, 700, 2], key[0, 1, 90, 2] = bad, bad
        alone(query, key, value, method, isa)
    query, key, value = tensors()
    bias = torch.zeros(1, 4, q_len, LONG)
    bias[:, 0, 0, 1230], bias[:, 1, 0, 700], bias[:, 2, 0, 1], bias[:, 3, 0, 9] = math.nan, math.inf, 2e38, -math.inf
    alone(query, key, value, method, isa, mask=bias)


@pytest.mark.parametrize("method", [Threshold(0.3), Threshold(0.02), Mass(0.9137)])
def test_what_is_not_there_has_no_weight(method: Threshold | Mass, isa: str, grid: Callable, alone: Callable) -> None:
    """With a tiny scale no score is so low that its weight is 0."""
    alone(*grid(1, 1, 5, 3, 8, 8), method, isa, scale=1.2e-38)
    alone(*grid(1, 1, 5, 40, 8, 8), method, isa, scale=1.2e-38, causal=True)


def test_the_output_alone(isa: str, grid: Callable, forward: Callable) -> None:
    """Without logsumexp, and nothing is written to where it would lie."""
    for dtype, method in itertools.product((torch.float32, torch.bfloat16, torch.float16), CHOICES):
        query, key, value = (x.to(dtype) for x in grid(4, 2, 2, 600, 32, 64))
        want = forward(query, key, value, method, isa, aux=False, alone=True).out
        out, pattern = torch.full_like(want, math.nan), Pattern(1, 1, 0, 0, 1, False, query.shape[-1] ** -0.5)
        cpu.row_forward(query, key, value, None, out, None, None, None, None, None, method.row_rule(), pattern, isa)
        assert torch.equal(out, want)


@pytest.mark.parametrize("method", CHOICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_threads_change_no_bit(
    method: TopK | Threshold | Mass, dtype: torch.dtype, isa: str, forward: Callable
) -> None:
    """One long row, and so many heads that they go through memory in several turns."""
    generator = torch.Generator().manual_seed(0)
    for batch, heads, kv_heads, kv_len, dim in ((1, 3, 1, 20_000, 64), (8, 24, 12, 7000, 8)):
        query = torch.randn(batch, heads, 1, dim, generator=generator).to(dtype)
        key, value = (torch.randn(batch, kv_heads, kv_len, dim, generator=generator).to(dtype) for _ in range(2))
        found = []
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            found.append(forward(query, key, value, method, isa, alone=True))
        for other in found[1:]:
            assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))
        for at in ((0, 0), (batch - 1, kv_heads - 1)):
            group = heads // kv_heads
            one = forward(
                query[at[0], at[1] * group : (at[1] + 1) * group][None], key[at][None, None], value[at][None, None],
                method, isa, alone=True,
            )  # fmt: skip
            rows = found[0].out[at[0], at[1] * group : (at[1] + 1) * group]
            torch.testing.assert_close(one.out[0], rows, rtol=1e-2 if dtype == torch.bfloat16 else 1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("method", CHOICES)
def test_key_heads_that_are_taken_together_change_no_bit(
    method: TopK | Threshold | Mass, dtype: torch.dtype, forward: Callable
) -> None:
    """Where their rows for one key lie side by side. Each head has keys of its own size, so that none can be taken for
    another's."""
    generator = torch.Generator().manual_seed(0)
    for kv_len in (150, 1100):
        query = torch.randn(2, 12, 2, 32, generator=generator).to(dtype)
        sizes = torch.arange(1, 7).view(1, 6, 1, 1) / 3
        key, value = ((sizes * torch.randn(2, 6, kv_len, dim, generator=generator)).to(dtype) for dim in (32, 64))
        mask = torch.rand(2, 12, 1, kv_len, generator=generator) > 0.1
        mask[0, 4:6, :, 64:128], mask[1, 2] = False, False
        beside = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in (key, value)]
        for options in ({}, {"mask": mask, "causal": True, "aux": False}):
            for isa in ("portable", cpu.best_isa()):
                separate, together = (
                    forward(query, *x, method, isa, alone=True, **options) for x in ((key, value), beside)
                )
                for a, b in zip(separate, together, strict=True):
                    torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("method", [TopK(ratio=0.25), Threshold(0.001), Mass(0.95)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_errors_are_those_of_rounding(
    method: TopK | Threshold | Mass, dtype: torch.dtype, isa: str, forward: Callable
) -> None:
    """On normal numbers: at most twice those of plain PyTorch that keeps the same pairs, and rounds weights as values
    are."""
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(1, 8, 3, 64, generator=generator).to(dtype)
    key, value = (torch.randn(1, 2, 1200, 64, generator=generator).to(dtype) for _ in range(2))
    exact = reference.forward(query.double(), key.double(), value.double(), method)
    keys, values = (x.repeat_interleave(4, 1) for x in (key, value))
    scores = query.double() @ keys.double().mT / 8
    rows = Rows(query.double(), keys.double(), 0, 1.0)
    weights = scores.masked_fill(~method.choose(scores, rows), -math.inf).softmax(-1)
    plain = (weights.to(dtype) @ values).double()
    got = forward(query, key, value, method, isa, alone=True)
    floor = 2e-6 if dtype == torch.float32 else 2.0**-9 * exact.out.abs().max()
    assert (got.out.double() - exact.out).abs().max() <= 2 * (plain - exact.out).abs().max() + floor
    assert torch.equal(got.kept, exact.kept)
