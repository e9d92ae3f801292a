"""Attention of one step of vLLM over its cache."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from dynattn import varlen_attention
from dynattn.integrations.vllm import attend, layout
from dynattn.integrations.vllm.chosen import Chosen
from dynattn.methods import parse
from tests.varlen.test_init import bounds, packed

Q_LENGTHS, K_LENGTHS = [1, 20, 1, 1], [60, 33, 5, 1]


def filled(size: int = 32, pages: int = 11) -> tuple[torch.Tensor, torch.Tensor, tuple[torch.Tensor, ...]]:
    """A cache that was written token by token, its table, and what lies in it."""
    cache = torch.full((pages, 2, size, 2 * 16), torch.nan)
    tensors = packed(Q_LENGTHS)[0], *packed(K_LENGTHS, value_dim=16, seed=1)[1:]
    table = torch.randperm(pages, generator=torch.Generator().manual_seed(2))[: 4 * 2].view(4, 2).int()
    places = [(row, place) for row, count in enumerate(K_LENGTHS) for place in range(count)]
    slots = [int(table[row, place // size]) * size + place % size for row, place in places]
    padded = [torch.cat([x[: len(slots)], x[:3]]) for x in tensors[1:]]
    layout.write(layout.pools(cache), padded[0], padded[1], torch.tensor([*slots, -1, -1, -1]))
    return cache, table, tensors


@pytest.mark.parametrize("phase", ["prefill", "decode", "both"])
def test_requests_that_decode_may_have_another_method(phase: str) -> None:
    cache, table, (query, key, value) = filled()
    chosen = Chosen(None, {"model.layers.0.self_attn": parse("nm-1-2")}, phase)
    step = attend.Step(bounds(Q_LENGTHS), torch.tensor(K_LENGTHS), table, True)
    got = attend.over_pages(query, *layout.pools(cache), step, chosen, "model.layers.0.self_attn.attn", scale=0.3)
    where: dict[str, Any] = {"cu_seq_q": bounds(Q_LENGTHS), "cu_seq_k": bounds(K_LENGTHS), "causal": True, "scale": 0.3}
    dense, sparse = (varlen_attention(query, key, value, parse(name), **where) for name in ("dense", "nm-1-2"))
    decoding = torch.tensor([True, *[False] * 20, True, False])
    expected = {"both": sparse, "decode": torch.where(decoding[:, None, None], sparse, dense)}
    expected["prefill"] = torch.where(decoding[:, None, None], dense, sparse)
    assert torch.equal(got, expected[phase])
