"""What a method is timed against: the best dense attention there is, and the paper's own baseline.

The functions return a call without arguments, so that what a user prepares once (a mask) is not timed.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from dynattn.bench.cases import Workload

SDPA, UNFUSED = "sdpa", "unfused"


def sdpa(workload: Workload, query: Tensor, key: Tensor, value: Tensor) -> Callable[[], Tensor]:
    """``torch.nn.functional.scaled_dot_product_attention``: the baseline."""
    gqa = workload.heads != workload.kv_heads

    def call() -> Tensor:
        return torch.nn.functional.scaled_dot_product_attention(
            query, key, value, is_causal=workload.causal, enable_gqa=gqa
        )

    return call


def unfused(workload: Workload, query: Tensor, key: Tensor, value: Tensor) -> Callable[[], Tensor]:
    """Matmul, softmax, matmul, with the scores in memory: what arXiv:2203.00091 compares with."""
    group = workload.heads // workload.kv_heads
    scale = workload.head_dim**-0.5
    forbidden = torch.ones(workload.q_len, workload.kv_len, dtype=torch.bool).triu(1) if workload.causal else None

    def call() -> Tensor:
        k, v = (x.repeat_interleave(group, dim=1) if group > 1 else x for x in (key, value))
        scores = (query * scale) @ k.mT
        if forbidden is not None:
            scores.masked_fill_(forbidden, -math.inf)
        return scores.softmax(-1) @ v

    return call


PEERS: dict[str, Callable[[Workload, Tensor, Tensor, Tensor], Callable[[], Tensor]]] = {SDPA: sdpa, UNFUSED: unfused}
