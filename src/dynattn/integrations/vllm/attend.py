"""Attention of one step of vLLM: requests one after another, their keys in pages."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dynattn.integrations.vllm.chosen import Chosen
from dynattn.methods import Method
from dynattn.varlen import varlen_attention


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
    methods = chosen.method(layer, decoding=False), chosen.method(layer, decoding=True)
    if methods[0] == methods[1]:
        return _attend(query, keys, values, step, methods[0], options)
    lengths = step.bounds.diff()
    decoding = (lengths == 1) & (step.used > 1)
    out = query.new_empty(*query.shape[:2], values.shape[-1])
    for method, which in zip(methods, (~decoding, decoding), strict=True):
        own = which.nonzero().flatten()
        rows = torch.repeat_interleave(which, lengths.long())
        bounds = torch.nn.functional.pad(lengths[own].cumsum(0), (1, 0))
        part = Step(bounds, step.used[own], step.block_table[own], step.causal)
        out[rows] = _attend(query[rows], keys, values, part, method, options)
    return out


def _attend(query: Tensor, keys: Tensor, values: Tensor, step: Step, method: Method, options: dict[str, Any]) -> Tensor:
    return varlen_attention(
        query, keys, values, method, cu_seq_q=step.bounds, seqused_k=step.used, block_table=step.block_table,
        causal=step.causal, **options,
    )  # fmt: skip
