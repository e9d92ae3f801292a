"""Requests of a step by their phase, over keys in pages."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from dynattn import varlen_attention
from dynattn.integrations import requests
from dynattn.methods import parse
from tests.varlen.test_init import bounds, packed


def test_one_query_and_more_keys_decode() -> None:
    lengths, used = torch.tensor([1, 1, 4, 4, 0]), torch.tensor([9, 1, 9, 4, 0])
    assert requests.decoding(lengths, used).tolist() == [True, False, False, False, False]


@pytest.mark.parametrize("lengths", [[1, 20, 1, 1], [1, 1, 1, 1], [20, 3, 5, 2]])
def test_each_request_has_the_method_of_its_phase(lengths: list[int]) -> None:
    used, size = [60, 33, 5, 2], 16
    query, (key, value) = packed(lengths)[0], packed(used, seed=1)[1:]
    pages = [torch.zeros(4 * 4 * size, *x.shape[1:], dtype=x.dtype) for x in (key, value)]
    for row, (start, count) in enumerate(zip(bounds(used).tolist(), used, strict=False)):
        for pool, x in zip(pages, (key, value), strict=True):
            pool[row * 4 * size : row * 4 * size + count] = x[start : start + count]
    keys, values = (pool.unflatten(0, (-1, size)) for pool in pages)
    where: dict[str, Any] = {"cu_seq_q": bounds(lengths), "causal": True}
    got = requests.over_pages(
        query, keys, values, parse("nm-1-2"), parse("nm-1-4"), **where, seqused_k=torch.tensor(used),
        block_table=torch.arange(16).view(4, 4),
    )  # fmt: skip
    both = [
        varlen_attention(query, key, value, parse(name), **where, cu_seq_k=bounds(used)).split(lengths)
        for name in ("nm-1-2", "nm-1-4")
    ]
    for number, (prefill, decode) in enumerate(zip(*both, strict=True)):
        expected = decode if lengths[number] == 1 else prefill
        torch.testing.assert_close(got.split(lengths)[number], expected)
