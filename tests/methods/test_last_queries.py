"""Methods whose last queries choose, against the rule by loops."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

import dynattn
from dynattn import FlexPrefill, VerticalSlash
from dynattn.methods import parse
from tests.methods.oracle import Rule, Scores, expected, padding


def rule(method: VerticalSlash | FlexPrefill) -> Rule:
    size = method.block

    def best(of: dict[int, float], keys: int) -> set[int]:
        ranked = sorted(of, key=lambda x: (-round(of[x], 12), x))
        if isinstance(method, VerticalSlash):
            return set(ranked[: math.ceil(keys / size)])
        count, added = 0, 0.0
        while count < len(ranked) and added + of[ranked[count]] <= method.mass * sum(of.values()):
            added += of[ranked[count]]
            count += 1
        return set(ranked[: max(math.ceil(method.least / size), count + 1)])

    def choose(s: Scores, offset: int) -> list[set[int]]:
        q_len, kv_len = len(s), len(s[0])
        columns = dict.fromkeys(range(math.ceil(kv_len / size)), 0.0)
        rows = range(math.ceil(q_len / size))
        diagonals = {row - column: 0.0 for row in rows for column in columns}
        for i in range(max(0, q_len - method.last), q_len):
            whole = sum(math.exp(x) for x in s[i])
            for j in range(kv_len):
                share = math.exp(s[i][j]) / whole if whole else 0.0
                columns[j // size] += share
                diagonals[i // size - j // size] += share
        keys = (method.columns, method.slashes) if isinstance(method, VerticalSlash) else (0, 0)
        kept_columns, kept_diagonals = best(columns, keys[0]), best(diagonals, keys[1])
        chosen = []
        for i in range(q_len):
            queries = range(i // size * size, min(i // size * size + size, q_len))
            chosen.append({
                j for j in range(kv_len) if j // size in kept_columns or i // size - j // size in kept_diagonals
                or any(k < 4 or abs(q + offset - k) < size for q in queries
                       for k in range(j // size * size, min(j // size * size + size, kv_len)))
            })  # fmt: skip
        return chosen

    return choose


def inputs(q_len: int, kv_len: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(q_len)
    shapes = ((2, 4, q_len, 8), (2, 2, kv_len, 8), (2, 2, kv_len, 6))
    return tuple(torch.randn(shape, dtype=torch.float64, generator=generator).to(dtype) for shape in shapes)


@pytest.mark.parametrize(
    "method",
    [VerticalSlash(8, 4, 4, last=5), VerticalSlash(3, 0, 3), VerticalSlash(0, 9, 3, last=1), VerticalSlash(0, 0, 4),
     FlexPrefill(0.5, 4, least=0), FlexPrefill(0.3, 3, least=7, last=5)],
)  # fmt: skip
def test_the_rule_by_loops(method: VerticalSlash | FlexPrefill) -> None:
    for q_len, kv_len in ((29, 29), (10, 40), (1, 1), (30, 13), (1, 20)):
        query, key, value = inputs(q_len, kv_len)
        for mask, causal in ((None, False), (None, True), (padding(kv_len, kv_len, kv_len // 2), True)):
            out, aux = dynattn.attention(
                query, key, value, method, attn_mask=mask, causal=causal, scale=1.5, return_aux=True
            )
            want = expected(rule(method), query, key, value, mask, causal, 1.5)
            torch.testing.assert_close(out, want.out)
            torch.testing.assert_close(aux.density, torch.where(want.allowed > 0, want.kept / want.allowed, 1.0))


@pytest.mark.parametrize("method", [VerticalSlash(32, 16, 16, last=20), FlexPrefill(0.4, 16, least=16, last=20)])
def test_kernels_compute_the_definition(method: VerticalSlash | FlexPrefill) -> None:
    for (q_len, kv_len), causal in itertools.product(((130, 130), (70, 170), (1, 90), (100, 40)), (False, True)):
        query, key, value = inputs(q_len, kv_len, torch.float32)
        call: dict[str, Any] = {"causal": causal, "attn_mask": padding(kv_len, kv_len, kv_len // 2)}
        plan = dynattn.explain(query, key, value, method, **call)
        assert "dropped blocks skipped" in plan.reason
        out = dynattn.attention(query, key, value, method, **call)
        want = dynattn.attention(query.double(), key.double(), value.double(), method, backend="reference", **call)
        torch.testing.assert_close(out.double(), want, rtol=1e-5, atol=1e-5)


def test_what_the_last_queries_look_for_is_kept_for_all() -> None:
    query, key, _ = (x[:1, :1].clone() for x in inputs(64, 64))
    key[0, 0, 16:20] = 9 * query[0, 0, -1] / query[0, 0, -1].norm()
    kept = VerticalSlash(4, 0, 4, last=1).choose_blocks(query, key, None, True, 1.0)
    assert kept[0, 0, :, 4].all()
    assert not kept[0, 0, 8:, 2].any()


def test_a_nan_is_kept_and_names_round_trip() -> None:
    query, key, value = inputs(40, 40)
    key[0, 0, 9] = math.nan
    out = dynattn.attention(query, key, value, VerticalSlash(4, 4, 4))
    assert out[0, :2].isnan().all()
    assert out[1].isfinite().all()
    for method in (
        VerticalSlash(512, 256),
        VerticalSlash(0, 64, 16, last=512),
        FlexPrefill(0.65),
        FlexPrefill(0.5, 8, 3, 2),
    ):
        assert parse(method.name) == method


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ((1.0, 16), TypeError, "columns must be an int"),
        ((8, -1), ValueError, "slashes must be between 0"),
        ((8, 8, 2000), ValueError, "block must be between 1 and 1024"),
        ((8, 8, 16, 0), ValueError, "last must be between 1"),
    ],
)
def test_refusals(arguments: tuple, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=f"VerticalSlash: {text}"):
        VerticalSlash(*arguments)
