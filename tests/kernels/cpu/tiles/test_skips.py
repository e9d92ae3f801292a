"""Runs of keys skipped by running maxima, on tile engines, against the definition: what is kept, and the output.

Queries and keys are such that scores are exact, so that what is kept must be equal.
"""

from __future__ import annotations

import ctypes
import itertools
import math
from contextlib import nullcontext
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor

import dynattn
from dynattn import BlockMass, BlockSkip, BlockTopK
from dynattn.kernels import cpu
from dynattn.kernels.cpu import runner
from dynattn.kernels.pattern import Pattern
from dynattn.methods import NM, Rows
from dynattn.ops.blocks import block_attention
from dynattn.reference import pairs as reference
from tests.covering import part
from tests.kernels.cpu.masks import masks
from tests.kernels.cpu.tiles import building
from tests.kernels.cpu.tiles.calling import error

MARGIN = 1.3  # no difference of the scores below
ALONE, INSIDE = BlockSkip(MARGIN), BlockSkip(MARGIN, BlockTopK(0.4, 16))
SHAPES = [  # heads, kv_heads, q_len, kv_len, head_dim, value_dim
    (1, 1, 1, 1, 1, 1), (2, 1, 7, 63, 8, 8), (4, 2, 65, 111, 20, 36), (2, 2, 13, 257, 32, 80),
    (1, 1, 20, 300, 260, 257), (2, 1, 200, 190, 16, 24),
]  # fmt: skip


def bfloat16(tensors: tuple[Tensor, ...]) -> list[Tensor]:
    return [x.bfloat16() for x in tensors]


def run(
    engine: str | ctypes.CDLL, tensors: list[Tensor], mask: Tensor | None, causal: bool, method: BlockSkip = ALONE, *,
    exact: bool = True,
) -> tuple[Tensor, ...]:  # fmt: skip
    """The output, the logsumexp, and the pairs that the kernel says it kept."""

    def run_in_library(_function: str, arguments: bytes) -> None:
        assert engine.dynattn_skip_forward(arguments) == 0  # type: ignore[union-attr]

    with nullcontext() if isinstance(engine, str) else patch.object(runner, "run", run_in_library):
        out, logsumexp, *_, blocks = block_attention(
            *tensors, mask, None, method.name, causal, 0.5, 0.0, False, exact,
            f"cpu-{engine if isinstance(engine, str) else 'tiles-portable'}",
        )  # fmt: skip
    kept = blocks.repeat_interleave(8, 2).repeat_interleave(16, 3)
    return out, logsumexp, kept[:, :, : tensors[0].shape[2], : tensors[1].shape[2]]


def check(
    engine: str | ctypes.CDLL, tensors: list[Tensor], mask: Tensor | None, causal: bool, method: BlockSkip = ALONE
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The definition's choice to the pair, the output within rounding. The scores, and what is kept of them."""
    query, key, value = (x.double() for x in tensors)
    offset = key.shape[2] - query.shape[2]
    s = reference.scores(query, key, mask, causal, 0.5, offset)
    want = reference.select(s, method, query, key, offset, 0.5)
    exact = reference.attend(query, key, value, method, mask, causal, 0.5, kept=want)
    size = max(value.abs().max().item(), 1.0)
    for gradient in (False, True):
        out, logsumexp, kept = run(engine, tensors, mask, causal, method, exact=gradient)
        assert torch.equal(kept & (s != -math.inf), want)
        assert error(out, exact.out) <= size * 2.0**-7
        assert error(logsumexp, exact.logsumexp) <= (1e-5 if gradient else 2.0**-7)
    return s, want


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("causal", [False, True])
def test_definition(shape: tuple[int, ...], causal: bool, engine: str, grid: Any) -> None:
    tensors, dropped = bfloat16(grid(*shape)), 0
    for mask in masks(*shape[2:4]):
        s, want = check(engine, tensors, mask, causal)
        dropped += int(((s != -math.inf) & ~want).sum())
    assert dropped or shape[3] < 2 * 16 or shape[2] > shape[3]


@pytest.mark.parametrize("shape", [shape for shape in SHAPES if max(shape[2:]) < 256], ids=str)
@pytest.mark.parametrize("causal", [False, True])
def test_definition_inside_of_kept_blocks(shape: tuple[int, ...], causal: bool, engine: str, grid: Any) -> None:
    """Blocks within a block of 64 keys, as large, larger, and across the ends of those."""
    tensors, kv_len = bfloat16(grid(*shape)), shape[3]
    for size, masked in ((16, True), (48, False), (64, True), (80, False), (128, False)):
        method = BlockSkip(MARGIN, BlockTopK(0.4, size, window=1, sinks=0))
        check(engine, tensors, torch.arange(kv_len) != kv_len // 3 if masked else None, causal, method)


def test_margins_between_large_scores(engine: str) -> None:
    """Between neighbouring floats that are 128 apart, a limit of 100 below the largest cannot be written down."""
    high = torch.full((1, 1, 64, 2), -(2.0**22))
    high[..., 1] = -torch.tensor([1.0, 0.0, 1.0, 2.0]).repeat_interleave(16) / 2
    query = torch.tensor([256.0, 256.0]).expand(1, 1, 8, 2)
    for margin, want in ((100.0, [1, 1, 0, 0]), (130.0, [1, 1, 1, 0]), (260.0, [1, 1, 1, 1])):
        tensors = bfloat16((query, high, torch.randn(1, 1, 64, 4)))
        method = BlockSkip(margin)
        out, *_, blocks = block_attention(
            *tensors, None, None, method.name, False, 1.0, 0.0, False, True, f"cpu-{engine}"
        )
        assert blocks[0, 0, 0, :4].tolist() == [bool(x) for x in want]
        s = tensors[0].double() @ tensors[1].double().mT
        assert method.choose(s, Rows(s, s, 0, 1.0))[0, 0, 0, ::16].tolist() == [bool(x) for x in want]
        query64, key64, value64 = (x.double() for x in tensors)
        exact = dynattn.attention(query64, key64, value64, method, scale=1.0, backend="reference")
        assert error(out, exact) <= tensors[2].abs().max() * 2.0**-7


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("scale", [0.5, 2e-38])
@pytest.mark.parametrize("method", [ALONE, INSIDE], ids=str)
def test_what_is_not_finite(method: BlockSkip, bad: float, scale: float, engine: str, grid: Any) -> None:
    """Scores that are not finite are kept and reach their rows; such values touch those alone that keep them."""
    query, key, value = bfloat16(grid(1, 1, 30, 100, 8, 8))
    query[0, 0, 3, 2] = bad
    value[0, 0, 70:80] = bad
    call: dict[str, Any] = {"causal": True, "scale": scale}
    out = dynattn.attention(query, key, value, method, backend=f"cpu-{engine}", **call)
    want = dynattn.attention(query.double(), key.double(), value.double(), method, backend="reference", **call)
    assert error(out, want.bfloat16()) <= value.nan_to_num(0.0, 0.0).abs().max() * 2.0**-6
    assert out[0, 0, 3].isnan().all()


@pytest.mark.parametrize("dropout_p", [0.0, 0.3])
@pytest.mark.parametrize(
    ("lengths", "method"),
    [
        ((65, 111), ALONE), ((130, 70), ALONE), ((65, 111), INSIDE),
        ((90, 150), BlockSkip(MARGIN, BlockMass(0.5, 64, "mean", window=1, sinks=0))),
    ],
    ids=str,
)  # fmt: skip
def test_gradients_certificates_and_dropout(
    lengths: tuple[int, int], method: BlockSkip, dropout_p: float, engine: str, grid: Any
) -> None:  # fmt: skip
    for causal, masked in itertools.product((False, True), (False, True)):
        mask = (torch.rand(lengths[1], generator=torch.Generator().manual_seed(2)) < 0.8) if masked else None
        found = []
        for backend, dtype in ((f"cpu-{engine}", torch.bfloat16), ("reference", torch.float64)):
            query, key, value = (x.to(dtype).requires_grad_() for x in grid(4, 2, *lengths, 16, 12))
            out, aux = dynattn.attention(
                query, key, value, method, attn_mask=mask, causal=causal, scale=0.5, backend=backend,
                dropout_p=dropout_p, seed=5 if dropout_p else None, return_aux=True,
            )  # fmt: skip
            loss = out.float().sin().sum() + aux.logsumexp.clamp(min=-1e3).square().sum() / 100
            found.append((out, aux, torch.autograd.grad(loss, (query, key, value))))
        (out, aux, gradients), (exact, exact_aux, exact_gradients) = found
        assert error(out, exact) <= 2.0**-6 * exact.abs().max().clamp(min=1.0)
        assert error(aux.kept_mass, exact_aux.kept_mass) <= 1e-4
        assert error(aux.density, exact_aux.density) <= 1e-6
        for got, want in zip(gradients, exact_gradients, strict=True):
            assert error(got, want) <= 2.0**-5 * want.abs().max().clamp(min=1.0)


def test_the_queries_of_a_block_decide_together_and_lanes_without_one_do_not(engine: str) -> None:
    """Seven queries of eight drop the last keys, and one asks for them; of the second block there are four queries."""
    query, key = torch.zeros(1, 1, 12, 2), torch.zeros(1, 1, 32, 2)
    key[:, :, :16, 0] = 4.0
    query[..., 0] = 1.0
    query[:, :, 5] = torch.tensor([0.0, 1.0])
    *_, kept = run(engine, bfloat16((query, key, key)), None, False)
    assert kept[0, 0, :, 31].tolist() == [True] * 8 + [False] * 4
    assert kept[..., 0].all()


def test_dropped_blocks_are_not_looked_at(engine: str, grid: Any) -> None:
    """NaN in their keys and values touches nothing; as bad as that in a kept one, it reaches the rows that keep it."""
    query, key, value = bfloat16(grid(1, 1, 40, 150, 20, 12))
    seen = torch.rand(1, 1, 3, 10, generator=torch.Generator().manual_seed(0)) < 0.5
    seen[..., 4], seen[..., 7], seen[..., 9] = False, torch.tensor([True, False, False]), True
    given = seen.repeat_interleave(16, 2)[:, :, :40].repeat_interleave(16, 3)[..., :150]
    key[:, :, 64:80], value[:, :, 64:80], key[:, :, 115] = math.nan, math.nan, math.nan
    out, logsumexp = torch.full((1, 1, 40, 12), math.nan, dtype=torch.bfloat16), torch.full((1, 1, 40), math.nan)
    kept = torch.zeros(1, 1, 5, 10, dtype=torch.bool)
    cpu.skip_forward(
        query, key, value, None, out, logsumexp, kept, MARGIN, Pattern.of(NM(1, 1), False, 0.5), engine, blocks=seen,
        block_size=16,
    )  # fmt: skip
    s = reference.scores(query.double(), key.double(), given, False, 0.5, 110)
    want = BlockSkip(MARGIN).choose(s, Rows(query, key, 110, 0.5)) & given
    assert torch.equal(kept.repeat_interleave(8, 2).repeat_interleave(16, 3)[..., :150] & given, want)
    assert (given & ~want).any()
    exact = reference.attend(
        query.double(), key.double().nan_to_num(), value.double().nan_to_num(), NM(1, 1), want, False, 0.5
    ).out
    assert out[0, 0, :16].isnan().all()
    assert error(out[:, :, 16:], exact[:, :, 16:]) <= 2.0**-7 * value.nan_to_num().abs().max()


BUGS = [
    ("skips.h", "& ~below & present)", "& ~below)"),
    ("skips.h", "state.most = max(state.most, largest);", ""),
    ("skips.h", "kept.lanes[run] = whole_bands(", "kept.lanes[run] = ("),
    ("skips.h", "weights(select(lanes, score(tile, key + 1), forbidden))", "weights(score(tile, key + 1))"),
    ("forward.h", "if (!pass.scratch.kept[group].any(step))", "if (pass.scratch.kept[group].any(step))"),
    ("forward.h", "if (plan.skips) forbid_others(tile, kept);", ""),
]  # fmt: skip


@pytest.mark.skipif(building.unavailable_reason() is not None, reason=str(building.unavailable_reason()))
@pytest.mark.parametrize("number", part(range(len(BUGS)), 3, str))
def test_a_bug_is_seen(number: int, grid: Any) -> None:
    """In the fast variant, and with so large a value in the careful one."""
    file, right, wrong = BUGS[number]
    library = building.with_bug(f"tiles/{file}", right, wrong)
    found = []
    for value in (1.0, math.inf):
        query, key, values = bfloat16(grid(1, 1, 28, 300, 16, 24))
        query[:, :, 16:24] = 0.0  # these keep all, and those before and behind them not the keys that are 0
        key[:, :, 100:200] = 0.0
        values[0, 0, 299, 3] = value
        mask = torch.arange(300) < 299
        check("tiles-portable", [query, key, values], mask, False)
        try:
            check(library, [query, key, values], mask, False)
        except AssertionError:
            found.append(value)
    assert found
