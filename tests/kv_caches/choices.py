"""What is chosen once, after the prompt, written as loops over heads, queries and tokens."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from dynattn.integrations.transformers import observing

SNAPKV = {"capacity": 10, "window": 6, "pool": 5, "recent": 3, "sinks": 2}
"""Options for prompts of 24 tokens."""


@torch.no_grad()
def calls_of(model: Any, ids: torch.Tensor, mask: torch.Tensor | None = None) -> list[Any]:
    """The attention call of each layer, over a prompt that is read densely."""
    found: list[Any] = []
    model.set_attn_implementation("dynattn:dense")
    with observing(found.append):
        model(ids, attention_mask=mask, use_cache=False)
    return found


def weights(call: Any, sample: int, head: int, query: int, first: int) -> list[float]:
    """Attention of one query over the tokens from ``first`` on, before which is padding; 0 where it sees nothing."""
    key = call.key[sample, head // (call.query.shape[1] // call.key.shape[1])].numpy().astype(float)
    seen = key[first : query + 1] @ call.query[sample, head, query].numpy().astype(float)
    grown = np.exp(seen * (call.query.shape[3] ** -0.5 if call.scale is None else call.scale))
    shares = grown / grown.sum() if grown.size else grown
    return [0.0] * min(first, len(key)) + shares.tolist() + [0.0] * (len(key) - max(first, query + 1))


def received(call: Any, sample: int, kv_head: int, queries: range, first: int, how: str) -> list[float]:
    """What tokens receive from some queries: the sum of means over the group, or the maximum."""
    group = call.query.shape[1] // call.key.shape[1]
    rows = [
        [weights(call, sample, head, query, first) for head in range(kv_head * group, (kv_head + 1) * group)]
        for query in queries
    ]
    tokens = range(call.key.shape[2])
    if how == "sum":
        return [sum(sum(row[j] for row in heads) / group for heads in rows) for j in tokens]
    return [max(row[j] for heads in rows for row in heads) for j in tokens]


def mean_pooled(scores: list[float], pool: int) -> list[float]:
    """Averages over neighbours, those beyond the ends being 0."""
    half = pool // 2
    return [sum(scores[i] for i in range(j - half, j + half + 1) if 0 <= i < len(scores)) / pool
            for j in range(len(scores))]  # fmt: skip


def max_pooled(scores: list[float], before: int, behind: int) -> list[float]:
    """Maxima over so many neighbours before and behind."""
    return [max(scores[max(0, j - before) : j + behind + 1]) for j in range(len(scores))]


def best(rank: dict[Any, float], count: int) -> set[Any]:
    """The keys of the largest numbers; of equal ones, the smaller key."""
    return set(sorted(rank, key=lambda place: (-rank[place], place))[:count])


def rank_of(call: Any, sample: int, kv_head: int, first: int, how: str, options: dict[str, int]) -> dict[int, float]:
    """What SnapKV ranks the text's tokens by."""
    tokens = call.key.shape[2]
    score = mean_pooled(
        received(call, sample, kv_head, range(tokens - options["window"], tokens), first, how), options["pool"]
    )
    forced = {*range(first, first + options["sinks"]), *range(tokens - options["recent"], tokens)}
    return {j: math.inf if j in forced else score[j] for j in range(first, tokens)}


def snapkv(call: Any, sample: int, first: int = 0, **options: int) -> list[set[int]]:
    """The tokens of the text that each key head holds."""
    heads = range(call.key.shape[1])
    return [best(rank_of(call, sample, head, first, "sum", options), options["capacity"]) for head in heads]


def adasnapkv(call: Any, sample: int, first: int = 0, **options: int) -> list[set[int]]:
    """The tokens of the text that each key head holds, where heads share room."""
    heads = range(call.key.shape[1])
    ranks = [rank_of(call, sample, head, first, "max", options) for head in heads]
    safe = max(int(0.2 * options["capacity"]), options["recent"] + options["sinks"])
    held = [best(rank, safe) for rank in ranks]
    rest = {(head, j): score for head in heads for j, score in ranks[head].items() if j not in held[head]}
    for head, j in best(rest, len(heads) * options["capacity"] - sum(map(len, held))):
        held[head].add(j)
    return held


def speckv(call: Any, sample: int, ahead: int, capacity: int, window: int, pool: int, first: int = 0) -> list[set[int]]:
    """The tokens of the prompt that each key head holds, of a call that has the lookahead behind it."""
    last = call.key.shape[2] - ahead - 1  # the prompt's last token
    before = last - window
    held = []
    for head in range(call.key.shape[1]):
        scores = received(call, sample, head, range(before, call.key.shape[2]), first, "max")[:before]
        score = max_pooled(scores, pool // 2, pool // 2)
        chosen = best({j: score[j] for j in range(first, before)}, capacity - window)
        held.append(chosen | set(range(max(before, first), last)))
    return held


def held_of(layer: Any, sample: int, first: int = 0) -> list[set[int]]:
    """The tokens of the text that a layer holds, by key head."""
    return [{j for j in row if j >= first} for row in layer.positions[sample].tolist()]
