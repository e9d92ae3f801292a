"""Quest against its rule by loops over heads, queries, pages and dimensions."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import dynattn
from dynattn import NM, Quest
from dynattn.methods import Rows, parse
from tests.methods.oracle import inputs, padding


def chosen(query: Tensor, key: Tensor, allowed: Tensor, method: Quest, scale: float) -> Tensor:
    """The kept pairs, bool (batch, heads, q_len, kv_len), of which ``allowed`` tells those that may be attended."""
    batch, heads, q_len, head_dim = query.shape
    kv_heads, kv_len = key.shape[1:3]
    group = heads // kv_heads
    kept = torch.zeros(batch, heads, q_len, kv_len, dtype=torch.bool)
    for b in range(batch):
        for shared in range(kv_heads):
            members = range(shared * group, (shared + 1) * group)
            keys = key[b, shared].tolist()
            for i in range(q_len):
                value: dict[int, float] = {}
                last = -1
                for h in members:
                    q = (scale * query[b, h, i]).tolist()
                    open_keys = [j for j in range(kv_len) if allowed[b, h, i, j]]
                    last = max([last, *open_keys])
                    for p in sorted({j // method.page for j in open_keys}):
                        inside = [keys[j] for j in open_keys if j // method.page == p]
                        bound = 0.0
                        for d in range(head_dim):
                            column = [k[d] for k in inside]
                            bound += max(q[d] * max(column), q[d] * min(column))
                        value[p] = value.get(p, 0.0) + bound
                best = sorted(value, key=lambda p: (-round(value[p], 9), p))[: method.budget // method.page]
                pages = {*best, last // method.page}
                for h in members:
                    for j in range(kv_len):
                        kept[b, h, i, j] = allowed[b, h, i, j] and j // method.page in pages
    return kept


def attended(query: Tensor, key: Tensor, value: Tensor, kept: Tensor, scale: float) -> Tensor:
    group = query.shape[1] // key.shape[1]
    s = scale * query @ key.repeat_interleave(group, 1).mT
    weights = s.masked_fill(~kept, -math.inf).softmax(-1).nan_to_num(0.0)
    return weights @ value.repeat_interleave(group, 1)


def may_attend(shape: tuple[int, ...], mask: Tensor | None, causal: bool) -> Tensor:
    allowed = torch.ones(shape, dtype=torch.bool) if mask is None else mask.expand(shape)
    return allowed.tril(shape[3] - shape[2]) if causal else allowed


@pytest.mark.parametrize("method", [Quest(4, 2), Quest(3, 3), Quest(2, 1)], ids=lambda m: m.name)
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 2), (3, 1)])
def test_the_rule_by_loops(method: Quest, heads: int, kv_heads: int) -> None:
    """Whole numbers, so that pages tie; masked for all queries alike and for each pair, causal or not."""
    scale = -0.5 if heads == 3 else 0.5
    for q_len, kv_len in ((7, 7), (1, 14), (3, 8), (1, 1), (5, 3)):
        query, key, value = inputs(q_len, kv_len, heads, kv_heads)
        pairs = torch.rand(2, heads, q_len, kv_len, generator=torch.Generator().manual_seed(1)) < 0.5
        for mask, causal in ((None, False), (None, True), (padding(kv_len, kv_len, kv_len // 2), True), (pairs, False)):
            allowed = may_attend((2, heads, q_len, kv_len), mask, causal)
            kept = chosen(query, key, allowed, method, scale)
            out, aux = dynattn.attention(
                query, key, value, method, attn_mask=mask, causal=causal, scale=scale, return_aux=True
            )
            torch.testing.assert_close(out, attended(query, key, value, kept, scale))
            density = kept.sum((2, 3)) / allowed.sum((2, 3)).clamp(min=1)
            torch.testing.assert_close(aux.density, density.masked_fill(allowed.sum((2, 3)) == 0, 1.0))


def test_the_page_of_the_last_key_comes_on_top_of_the_budget() -> None:
    query, key = torch.ones(1, 1, 1, 2), torch.ones(1, 1, 12, 2)
    key[0, 0, 8:] = -5.0  # the least of all, and the last
    s = query @ key.mT
    assert Quest(4, 4).choose(s, Rows(query, key, 11, 1.0)).flatten().tolist() == [True] * 4 + [False] * 4 + [True] * 4
    key[0, 0, 8:] = 5.0  # the best, which has its place among the best
    kept = Quest(4, 4).choose(query @ key.mT, Rows(query, key, 11, 1.0))
    assert kept.flatten().tolist() == [False] * 8 + [True] * 4


def test_heads_that_share_keys_choose_together() -> None:
    """Neither head alone would keep the middle page."""
    query = torch.tensor([[[[1.0, 0.0]], [[0.0, 1.0]]]])
    key = torch.tensor([[[[5.0, -9.0], [4.0, 4.0], [-9.0, 5.0], [0.0, 0.0]]]])
    rows = Rows(query, key.expand(1, 2, 4, 2), 3, 1.0, group=2)
    kept = Quest(1, 1).choose(query @ key.mT, rows)
    assert kept[0, :, 0].tolist() == [[False, True, False, True]] * 2
    apart = Quest(1, 1).choose(query @ key.mT, Rows(query, key.expand(1, 2, 4, 2), 3, 1.0))
    assert apart[0, :, 0].tolist() == [[True, False, False, True], [False, False, True, True]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_budget_of_everything_is_dense(dtype: torch.dtype) -> None:
    query, key, value = (x.to(dtype) for x in inputs(7, 30))
    out = dynattn.attention(query, key, value, Quest(32), causal=True)
    dense = dynattn.attention(query, key, value, NM(1, 1), causal=True, backend="reference")
    torch.testing.assert_close(out, dense)


def test_a_nan_reaches_the_output_and_no_keys_give_0() -> None:
    query, key, value = inputs(1, 40)
    key[0, 0, 3] = math.nan
    out = dynattn.attention(query, key, value, Quest(4, 4))
    assert out[0, :2].isnan().all()
    assert out[0, 2:].isfinite().all()
    assert out[1].isfinite().all()
    nothing = dynattn.attention(query, key[:, :, :0], value[:, :, :0], Quest(4, 4))
    assert torch.equal(nothing, torch.zeros_like(out))


@pytest.mark.parametrize(
    ("name", "method"), [("quest-1024", Quest()), ("quest-64-p32", Quest(64, 32)), ("quest-16", Quest(16, 16))]
)
def test_names(name: str, method: Quest) -> None:
    assert parse(name) == method
    assert method.name == name


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ((64.0,), TypeError, r"budget must be an int: got 64\.0"),
        ((64, True), TypeError, "page must be an int"),
        ((0,), ValueError, "budget must be between 1"),
        ((4096, 2048), ValueError, "page must be between 1 and 1024: got 2048"),
        ((40, 16), ValueError, "budget must be a multiple of page: got 40 and 16; try 48"),
    ],
)
def test_refusals(arguments: tuple, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=f"Quest: {text}"):
        Quest(*arguments)
