"""One query on a cache that skips by running maxima, with keys read in place: what it keeps, and what comes of it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import dynattn
from dynattn import BlockSkip, BlockTopK
from dynattn.kernels import cpu
from dynattn.ops.blocks import block_attention
from dynattn.reference import pairs as reference
from tests.kernels.cpu import planted
from tests.kernels.cpu.masks import masks

pytestmark = pytest.mark.skipif(not cpu.is_available(), reason=cpu.unavailable_reason() or "")

MARGIN = 1.3  # no difference of the scores below
ALONE, INSIDE = BlockSkip(MARGIN), BlockSkip(MARGIN, BlockTopK(0.4, 16))
LARGE = BlockSkip(MARGIN, BlockTopK(0.4, 80))
SHAPES = [  # heads, kv_heads, kv_len, head_dim, value_dim
    (1, 1, 1, 1, 1),
    (6, 2, 150, 24, 40),
    (3, 1, 1030, 5, 12),
    (4, 4, 1500, 32, 64),
    (140, 2, 600, 16, 16),
]
BUGS = {
    "a run is the next one": ("scores + run * DYNATTN_SKIP_KEYS", "scores + (run + 1) * DYNATTN_SKIP_KEYS"),
    "the last run is forgotten": (
        "ceil_div(plan.args->kv_len, DYNATTN_SKIP_KEYS);", "plan.args->kv_len / DYNATTN_SKIP_KEYS;",
    ),
    "the largest of all is the first's": ("if (bits(greater(largest, so_far)) != 0)", "if (run == 0)"),
    "the unit of scores is forgotten": ("rule.margin * kLog2e / plan.exponent", "rule.margin"),
    "NaN is small": ("select(greater(infinity, x), x, most)", "select(greater(infinity, x), x, broadcast(-INFINITY))"),
    "what is noted is the first head's": ("(batch * args.heads + index)", "(batch * args.heads)"),
    "nothing is forbidden": ("store(first + i, forbidden)", "store(first + i, load(first + i))"),
    "what is empty is kept": ("(bits(greater(largest, forbidden)) & ~below) != 0", "(1 & ~below) != 0"),
}  # fmt: skip


def check(isa: str, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, method: BlockSkip = ALONE) -> bool:
    """Hold a call against the definition; whether it drops some pairs."""
    out, logsumexp, *_, blocks = block_attention(
        query, key, value, mask, None, method.name, True, 0.5, 0.0, False, False, f"cpu-{isa}"
    )
    kept = blocks[:, :, :1].repeat_interleave(16, 3)[..., : key.shape[2]]
    s = reference.scores(query, key, mask, True, 0.5, key.shape[2] - 1)
    want, allowed = reference.select(s, method, query, key, key.shape[2] - 1, 0.5), s != -math.inf
    assert torch.equal(kept & allowed, want)
    exact = reference.attend(query.double(), key.double(), value.double(), method, mask, True, 0.5, kept=want)
    torch.testing.assert_close(out.double(), exact.out, rtol=1e-5, atol=1e-5, equal_nan=True)
    torch.testing.assert_close(logsumexp.double(), exact.logsumexp, rtol=1e-5, atol=1e-5, equal_nan=True)
    return bool((allowed & ~want).any())


def given_masks(kv_len: int) -> list[Tensor | None]:
    """With one that forbids everything."""
    of_two = [mask if mask is None else mask[..., :1, :] for mask in masks(2, kv_len)]
    return [*of_two, masks(1, kv_len)[1]]


@pytest.mark.parametrize("method", [ALONE, INSIDE, LARGE], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_definition(method: BlockSkip, shape: tuple[int, ...], isa: str, grid: Callable) -> None:
    """Whatever the layout of the cache."""
    heads, kv_heads, kv_len, head_dim, value_dim = shape
    query, key, value = grid(heads, kv_heads, 1, kv_len, head_dim, value_dim)
    drops = False
    for mask, side_by_side in itertools.product(given_masks(kv_len), (False, True)):
        keys, values = (x.transpose(1, 2).contiguous().transpose(1, 2) if side_by_side else x for x in (key, value))
        drops |= check(isa, query, keys, values, mask, method)
    assert drops or kv_len == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("method", [ALONE, INSIDE], ids=str)
def test_what_is_not_finite(method: BlockSkip, dtype: torch.dtype, isa: str, grid: Callable) -> None:
    query, key, value = (x.to(dtype) for x in grid(4, 2, 1, 700, 32, 32))
    query[0, 3, 0, 2], value[0, 0, 300:320, 4], value[0, 1, 600] = math.inf, math.nan, math.inf
    mask = torch.rand(1, 4, 1, 700, generator=torch.Generator().manual_seed(3)) < 0.7
    for bad in (math.nan, math.inf, -math.inf):
        key[0, 0, 500, 7] = bad
        for allowed in (None, mask, mask & (torch.arange(700) != 500)):
            call: dict[str, Any] = {"attn_mask": allowed, "scale": 0.5}
            got = dynattn.attention(query, key, value, method, backend=f"cpu-{isa}", **call)
            q, k, v = (x.double() for x in (query, key, value))
            want = dynattn.attention(q, k, v, method, backend="reference", **call)
            close = 1e-5 if dtype == torch.float32 else 2e-2
            torch.testing.assert_close(got.double(), want, equal_nan=True, rtol=close, atol=close)
            assert want[0, 3].isnan().all()


def fails(library: Any, monkeypatch: pytest.MonkeyPatch, grid: Callable) -> int:
    """How many of a few calls differ from the definition."""
    planted.take(library, monkeypatch)
    failed = 0
    query, key, value = grid(4, 2, 1, 1030, 8, 8)
    bad = key.clone()
    bad[0, 0, 500, 3] = math.nan
    for keys, mask in itertools.product((key, bad), given_masks(1030)):
        try:
            check("portable", query, keys, value, mask)
        except AssertionError:
            failed += 1
    return failed


@pytest.mark.parametrize("bug", [None, *BUGS])
def test_bug_is_seen(bug: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, grid: Callable) -> None:
    """None is seen where there is none."""
    changed = ("rows/skipped_runs.h", *BUGS[bug]) if bug else ()
    library = planted.build(Path(__file__).parent / "few_entry.cpp", tmp_path, *changed)
    assert (fails(library, monkeypatch, grid) > 0) == (bug is not None)
