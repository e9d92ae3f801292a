"""The rules of methods that keep whole blocks, by loops."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch

import dynattn
from dynattn import BlockMass, BlockTopK
from dynattn.methods import PairMethod
from dynattn.methods.blocks import Blocks
from tests.methods.oracle import Rule, Scores, expected, padding

Values = Callable[[Scores, range, range], float]


def mean(s: Scores, queries: range, keys: range) -> float:
    allowed = [s[i][j] for i in queries for j in keys if s[i][j] != -math.inf]
    return sum(allowed) / len(allowed)


def sampled_share(s: Scores, queries: range, keys: range) -> float:
    """The share of weights that the last query of each run of 16 gives to the keys."""
    total = 0.0
    for first in range(queries.start, queries.stop, 16):
        row = s[min(first + 16, queries.stop) - 1]
        whole = sum(math.exp(x) for x in row)
        total += sum(math.exp(row[j]) for j in keys) / whole if whole else 0.0
    return math.log(total) if total else -math.inf


def run_share(s: Scores, queries: range, keys: range) -> float:
    """The share of weights that the mean scores of each run of 16 give to the keys."""
    total = 0.0
    for first in range(queries.start, queries.stop, 16):
        columns = zip(*s[first : min(first + 16, queries.stop)], strict=True)
        allowed = [[x for x in column if x != -math.inf] for column in columns]
        weights = [math.exp(sum(column) / len(column)) if column else 0.0 for column in allowed]
        total += sum(weights[j] for j in keys) / sum(weights) if sum(weights) else 0.0
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


Sure = Callable[[range, range], bool]


def rule(method: Blocks, values: Values, exact: tuple[int, int] = (1, 1), sure: Iterator[Sure] | None = None) -> Rule:
    """The forced blocks, then the best that is left, the first of several, until there are enough.

    ``exact`` is the share of a :class:`BlockTopK`; ``sure`` says for the heads in turn which blocks are forced besides.
    """
    size, window = method.block, method.block if method.window is None else method.window

    def choose(s: Scores, offset: int) -> list[set[int]]:
        kv_len, chosen, is_sure = len(s[0]), [], next(sure) if sure else (lambda *_: False)
        for first in range(0, len(s), size):
            queries = range(first, min(first + size, len(s)))
            blocks = [range(j, min(j + size, kv_len)) for j in range(0, kv_len, size)]
            blocks = [keys for keys in blocks if any(s[i][j] != -math.inf for i in queries for j in keys)]
            kept = [
                keys for keys in blocks
                if is_sure(queries, keys)
                or any(abs(i + offset - j) < window or j < method.sinks for i in queries for j in keys)
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


def holds(method: PairMethod, want: Rule, shapes: list[tuple[int, int]]) -> None:
    """The method gives what its rule gives, on numbers that do not tie, where rounding would decide."""
    for q_len, kv_len in shapes:
        generator = torch.Generator().manual_seed(q_len)
        query, key = (torch.randn(2, 1, n, 4, dtype=torch.float64, generator=generator) for n in (q_len, kv_len))
        value = torch.randn(2, 1, kv_len, 3, dtype=torch.float64, generator=generator)
        for mask, causal in ((None, False), (None, True), (padding(kv_len, kv_len, kv_len // 2), True)):
            out = dynattn.attention(query, key, value, method, attn_mask=mask, causal=causal, scale=0.5)
            torch.testing.assert_close(out, expected(want, query, key, value, mask, causal).out)
