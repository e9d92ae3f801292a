"""Attention of one step of vLLM: requests one after another, their keys in pages."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from dynattn.integrations import requests
from dynattn.integrations.vllm.chosen import Chosen


@dataclass(frozen=True)
class Step:
    """Where the requests of a step lie.

    Attributes:
        bounds: (requests + 1,): of their queries.
        used: (requests,): how many keys each has, the new ones included.
        block_table: (requests, most pages): which pages they lie in.
        causal: whether keys after the query are forbidden.
    """

    bounds: Tensor
    used: Tensor
    block_table: Tensor
    causal: bool


def over_pages(
    query: Tensor, keys: Tensor, values: Tensor, step: Step, chosen: Chosen, layer: str, **options: Any
) -> Tensor:
    """Attention over keys in pages, which are read where they are. Requests that decode may have another method.

    Args:
        query: (tokens, heads, head_dim).
        keys, values: the pools of pages.
        step: where the requests lie.
        chosen: the methods of the layers.
        layer: the layer's name.
        options: ``scale`` and ``window_size`` of :func:`dynattn.varlen_attention`.

    Returns:
        (tokens, heads, value_dim).
    """
    prefill, decode = chosen.method(layer, decoding=False), chosen.method(layer, decoding=True)
    return requests.over_pages(
        query, keys, values, prefill, decode, cu_seq_q=step.bounds, seqused_k=step.used, block_table=step.block_table,
        causal=step.causal, **options,
    )  # fmt: skip
