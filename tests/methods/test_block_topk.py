import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

import dynattn
from dynattn import BlockMass, BlockTopK
from dynattn.maths import antidiagonal, bounds, sampled
from dynattn.methods import Rows, parse
from dynattn.methods.blocks import Blocks
from tests.methods.oracle import Rule, Scores, agrees, expected, inputs, padding

Values = Callable[[Scores, range, range], float]
"""All rows of scores, the queries and the keys of a block: its value."""


def mean(s: Scores, queries: range, keys: range) -> float:
    allowed = [s[i][j] for i in queries for j in keys if s[i][j] != -math.inf]
    return sum(allowed) / len(allowed)


def sampled_share(s: Scores, queries: range, keys: range) -> float:
    """Of the last query of each run of 16."""
    total = 0.0
    for first in range(queries.start, queries.stop, 16):
        row = s[min(first + 16, queries.stop) - 1]
        whole = sum(math.exp(x) for x in row)
        total += sum(math.exp(row[j]) for j in keys) / whole if whole else 0.0
    return math.log(total) if total else -math.inf


def antidiagonal_share(s: Scores, queries: range, keys: range) -> float:
    total = 0.0
    for row in range(queries.start, queries.stop, 16):
        weights = {}
        for column in range(0, len(s[0]), 16):
            pairs = [(row + 15 - n, column + n) for n in range(16)]
            scores = [s[i][j] for i, j in pairs if i < len(s) and j < len(s[0]) and s[i][j] != -math.inf]
            if scores:
                weights[column] = math.exp(sum(scores) / len(scores))
        total += sum(w for column, w in weights.items() if column in keys) / sum(weights.values()) if weights else 0.0
    return math.log(total) if total else -math.inf


def rule(method: Blocks, values: Values, exact: tuple[int, int] = (1, 1)) -> Rule:
    """The forced blocks, then the best that is left, the first of several, until there are enough.

    ``exact`` is the share of a :class:`BlockTopK`.
    """
    size, window = method.block, method.block if method.window is None else method.window

    def choose(s: Scores, offset: int) -> list[set[int]]:
        kv_len, chosen = len(s[0]), []
        for first in range(0, len(s), size):
            queries = range(first, min(first + size, len(s)))
            blocks = [range(j, min(j + size, kv_len)) for j in range(0, kv_len, size)]
            blocks = [keys for keys in blocks if any(s[i][j] != -math.inf for i in queries for j in keys)]
            kept = [
                keys for keys in blocks
                if any(abs(i + offset - j) < window or j < method.sinks for i in queries for j in keys)
            ]  # fmt: skip
            left = [keys for keys in blocks if keys not in kept]
            value = {keys: max(values(s, queries, keys), -1e300) for keys in blocks}
            weight = {keys: math.exp(v) / sum(map(math.exp, value.values())) for keys, v in value.items()}
            while left and not enough(kept, blocks, weight):
                best = left[0]
                for keys in left:
                    if value[keys] > value[best] + 1e-12:  # sums round
                        best = keys
                kept.append(best)
                left.remove(best)
            chosen += [{j for keys in kept for j in keys} for _ in queries]
        return chosen

    def enough(kept: list[range], blocks: list[range], weight: dict[range, float]) -> bool:
        if isinstance(method, BlockMass):
            return sum(weight[keys] for keys in kept) >= method.mass
        assert isinstance(method, BlockTopK)
        share = math.ceil(len(blocks) * exact[0] / exact[1])
        return len(kept) >= max(share, math.ceil(method.floor / size))

    return choose


FORCED: list[dict[str, Any]] = [{}, {"window": 0, "sinks": 0}, {"window": 1}, {"window": 5, "sinks": 3}]


@pytest.mark.parametrize(("ratio", "exact"), [(0.25, (1, 4)), (0.5, (1, 2)), (0.000001, (1, 10**6)), (1.0, (1, 1))])
@pytest.mark.parametrize("block", [1, 2, 4, 32])
@pytest.mark.parametrize("forced", FORCED, ids=str)
@pytest.mark.parametrize("floor", [0, 5, 32])
def test_definition(ratio: float, exact: tuple[int, int], block: int, forced: dict[str, Any], floor: int) -> None:
    method = BlockTopK(ratio, block, floor=floor, **forced)
    agrees(method, rule(method, mean, exact), [(13, 13), (5, 13), (13, 5)])


def holds(method: Blocks, want: Rule, shapes: list[tuple[int, int]]) -> None:
    """The method gives what its rule gives, on numbers that do not tie, where rounding would decide."""
    for q_len, kv_len in shapes:
        generator = torch.Generator().manual_seed(q_len)
        query, key = (torch.randn(2, 1, n, 4, dtype=torch.float64, generator=generator) for n in (q_len, kv_len))
        value = torch.randn(2, 1, kv_len, 3, dtype=torch.float64, generator=generator)
        for mask, causal in ((None, False), (None, True), (padding(kv_len, kv_len, kv_len // 2), True)):
            out = dynattn.attention(query, key, value, method, attn_mask=mask, causal=causal, scale=0.5)
            torch.testing.assert_close(out, expected(want, query, key, value, mask, causal).out)


@pytest.mark.parametrize("forced", FORCED[:2], ids=str)
@pytest.mark.parametrize(
    ("by", "values", "block"),
    [("sampled", sampled_share, 4), ("sampled", sampled_share, 24), ("antidiagonal", antidiagonal_share, 16),
     ("antidiagonal", antidiagonal_share, 32)],
)  # fmt: skip
def test_estimates(by: str, values: Values, block: int, forced: dict[str, Any]) -> None:
    method = BlockTopK(0.4, block, by, floor=0, **forced)
    holds(method, rule(method, values, (2, 5)), [(70, 70), (37, 100), (1, 90), (90, 41)])


@pytest.mark.parametrize("forced", FORCED[:2], ids=str)
@pytest.mark.parametrize("mass", [0.3, 0.8, 1.0])
@pytest.mark.parametrize(("by", "values"), [("mean", mean), ("sampled", sampled_share)])
def test_mass(mass: float, by: str, values: Values, forced: dict[str, Any]) -> None:
    method = BlockMass(mass, 4, by, **forced)
    holds(method, rule(method, values), [(13, 13), (5, 40), (1, 1), (30, 13)])


def test_without_masks_the_mean_is_the_product_of_the_pooled_vectors() -> None:
    torch.manual_seed(0)
    query, key = torch.randn(2, 1, 3, 32, 8, dtype=torch.float64)
    s = 0.7 * query @ key.mT
    pooled = [x.unflatten(2, (4, 8)).mean(3) for x in (query, key)]
    means = 0.7 * pooled[0] @ pooled[1].mT
    kept = BlockTopK(0.25, 8, window=0, sinks=0, floor=0).choose(s, Rows(query, key, 0, 0.7))
    best = means.argmax(-1)
    for h in range(3):
        for i in range(32):
            assert kept[0, h, i].nonzero().flatten().tolist() == [8 * int(best[0, h, i // 8]) + j for j in range(8)]


@pytest.mark.parametrize("scale", [0.5, -0.5])
@pytest.mark.parametrize("causal", [False, True])
def test_bounds_are_the_mean_of_each_querys_bound_and_no_score_lies_above_it(scale: float, causal: bool) -> None:
    query, key, _ = inputs(11, 14, heads=1, kv_heads=1)
    s = scale * query @ key.mT
    if causal:
        s = s.masked_fill(torch.ones(11, 14, dtype=torch.bool).triu(4), -math.inf)
    s = s.masked_fill(~padding(14, 14, 9), -math.inf)
    value, some = bounds.of_scores(s, 4, query, key, scale)
    for b in range(2):
        for row, first in enumerate(range(0, 11, 4)):
            for column, start in enumerate(range(0, 14, 4)):
                queries, keys = range(first, min(first + 4, 11)), range(start, min(start + 4, 14))
                seen = [j for j in keys if any(s[b, 0, i, j] != -math.inf for i in queries)]
                assert bool(some[b, 0, row, column]) == bool(seen)
                if not seen:
                    continue
                of_query = []
                for i in queries:
                    terms = [[scale * float(query[b, 0, i, d] * key[b, 0, j, d]) for j in seen] for d in range(4)]
                    of_query.append(sum(map(max, terms)))
                    assert all(float(s[b, 0, i, j]) <= of_query[-1] + 1e-9 for j in seen)
                assert value[b, 0, row, column] == pytest.approx(sum(of_query) / len(of_query))


def test_the_choice_by_bounds_is_that_of_its_values() -> None:
    query, key, _ = inputs(64, 64, heads=2, kv_heads=2)
    s = 0.5 * query @ key.mT
    rows = Rows(query, key, 0, 0.5)
    value, _ = bounds.of_scores(s, 8, query, key, 0.5)
    kept = BlockTopK(0.25, 8, "bounds", window=0, sinks=0).choose(s, rows)
    best = value.sort(dim=-1, descending=True, stable=True).indices[..., :4]  # the floor: 32 keys
    blocks = torch.zeros_like(value, dtype=torch.bool).scatter(-1, best, True)
    assert torch.equal(kept, blocks.repeat_interleave(8, -2).repeat_interleave(8, -1))


def test_causal_attention_keeps_its_own_blocks_and_the_first_within_the_budget() -> None:
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 1, 2, 512, 16)
    for by in ("mean", "sampled", "bounds", "antidiagonal"):
        _, aux = dynattn.attention(query, key, value, BlockTopK(0.25, 16, by), causal=True, return_aux=True)
        kept = BlockTopK(0.25, 16, by).choose_blocks(query, key, None, True, 0.25)
        for row in range(32):
            assert kept[0, :, row, [0, row, max(0, row - 1)]].all()
            assert (kept[0, :, row].sum(-1) == max(math.ceil((row + 1) / 4), min(row + 1, 3))).all()
        assert (aux.density < 0.32).all()


@pytest.mark.parametrize("by", ["mean", "sampled", "bounds", "antidiagonal"])
@pytest.mark.parametrize("kind", [BlockTopK, BlockMass])
def test_nan_reaches_the_output(by: str, kind: type[Blocks]) -> None:
    query, key, value = inputs(48, 112)  # whole tiles: antidiagonals of a cut one miss some keys
    key[0, 0, 20] = math.nan  # of seven blocks at most four are kept by force, and not this one: it is ranked
    for method in (kind(0.8, 16, by), kind(0.1, 16, by, window=0, sinks=0)):  # pyright: ignore[reportCallIssue]
        out = dynattn.attention(query, key, value, method)
        assert out[0, :2].isnan().all()
        assert out[0, 2:].isfinite().all()


def test_mass_keeps_more_where_attention_is_flat() -> None:
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 1, 1, 256, 16)
    density = [
        dynattn.attention(sharp * query, key, value, BlockMass(0.8, 16), return_aux=True)[1].density
        for sharp in (0.0, 1.0, 4.0)
    ]
    assert density[0] > density[1] > density[2]


def test_steps_are_those_of_the_pages() -> None:
    assert (sampled.STEP, antidiagonal.STEP) == (16, 16)


@pytest.mark.parametrize(
    ("name", "method"),
    [
        ("blocktopk-0.25-b16", BlockTopK(0.25, 16)),
        ("blocktopk-0.25-b64-w0-s0", BlockTopK(0.25, 64, window=0, sinks=0)),
        ("blocktopk-0.25-b64-w64", BlockTopK(0.25, 64, window=64)),
        ("blocktopk-0.25-b64-sampled-w128-s64-f0", BlockTopK(0.25, 64, "sampled", 128, 64, 0)),
        ("blocktopk-0.25-b64-bounds", BlockTopK(0.25, 64, "bounds")),
        ("blocktopk-0.25-b32-antidiagonal-f8", BlockTopK(0.25, 32, "antidiagonal", floor=8)),
        ("blockmass-0.9-b64-sampled", BlockMass(0.9, 64)),
        ("blockmass-0.9-b16", BlockMass(0.9, 16, "mean")),
        ("blockmass-0.9-b16-bounds-w0-s0", BlockMass(0.9, 16, "bounds", 0, 0)),
    ],
)
def test_names(name: str, method: Blocks) -> None:
    assert method.name == name
    assert parse(name) == method


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ((1, 16), TypeError, "ratio must be a float"),
        ((0.5, 0), ValueError, "block must be between 1 and 1024"),
        ((0.5, 1025), ValueError, "block must be between 1 and 1024"),
        ((0.5, 16.0), TypeError, "block must be an int"),
        ((0.5, 16, "best"), ValueError, "by must be one of mean, bounds, antidiagonal, sampled: got 'best'"),
        ((0.5, 16, 3), ValueError, "by must be one of"),
        ((0.5, 24, "antidiagonal"), ValueError, "block must be a multiple of 16 with 'antidiagonal': got 24"),
        ((0.5, 16, "mean", -1), ValueError, "window must be between 0 and"),
        ((0.5, 16, "mean", 1.5), TypeError, "window must be an int"),
        ((0.5, 16, "mean", 0, None), TypeError, "sinks must be an int"),
        ((0.5, 16, "mean", 0, 0, -1), ValueError, "floor must be between 0 and"),
        ((0.5, 16, "mean", 0, 0, 0.5), TypeError, "floor must be an int"),
    ],
)
def test_refusals(arguments: tuple, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=f"BlockTopK: {text}"):
        BlockTopK(*arguments)


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ((1, 16), TypeError, "mass must be a float"),
        ((1.5, 16), ValueError, "mass must be between 1e-6 and 1"),
        ((0.5, 0), ValueError, "block must be between 1 and 1024"),
        ((0.5, 16, "best"), ValueError, "by must be one of"),
    ],
)
def test_refusals_of_mass(arguments: tuple, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=f"BlockMass: {text}"):
        BlockMass(*arguments)
