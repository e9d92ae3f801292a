"""A method that says that it is dense attention at some lengths keeps every pair there, and the call is answered so."""

from __future__ import annotations

import pytest
import torch

import dynattn
from dynattn import Window
from dynattn.methods import PerHead, parse
from tests.methods.every import NAMES

SIZES = [(1, 1), (1, 5), (5, 5), (9, 5), (5, 9), (8, 8), (16, 16), (15, 16), (17, 17), (33, 32), (20, 64), (64, 64)]
MORE = (
    "window-16-s3", "window-1-s9", "window-40", "topk-16", "topk-0.1", "blocktopk-0.1-b16-w1",
    "blocktopk-0.1-b32-w2-s0",
)  # fmt: skip


@pytest.mark.parametrize("name", [*NAMES, *MORE])
def test_keeps_all_is_true_of_what_is_dense_alone(name: str) -> None:
    method = parse(name)
    if isinstance(method, PerHead):
        return
    generator = torch.Generator().manual_seed(0)
    for q_len, kv_len in SIZES:
        if not method.keeps_all(q_len, kv_len):
            continue
        query, key, value = (torch.randn(1, 2, n, 8, generator=generator) for n in (q_len, kv_len, kv_len))
        masks = [None, torch.rand(1, 1, q_len, kv_len, generator=generator) < 0.6]
        for attn_mask, causal in [(mask, causal) for mask in masks for causal in (False, True)]:
            options = {"attn_mask": attn_mask, "causal": causal, "backend": "reference"}
            got, aux = dynattn.attention(query, key, value, method, return_aux=True, **options)
            torch.testing.assert_close(got, dynattn.attention(query, key, value, parse("dense"), **options))
            assert (aux.density == 1).all()


@pytest.mark.parametrize(
    ("name", "lengths"),
    [
        ("window-16-s3", [(16, 16), (1, 16)]), ("window-1-s9", [(50, 9)]), ("topk-16", [(70, 16)]),
        ("topk-0.1", [(1, 32)]), ("blocktopk-0.1-b16", [(32, 32), (3, 16)]),
    ],
)  # fmt: skip
def test_keeps_all_up_to_where_it_ends(name: str, lengths: list[tuple[int, int]]) -> None:
    for q_len, kv_len in lengths:
        assert parse(name).keeps_all(q_len, kv_len)
        assert not parse(name).keeps_all(q_len + 1, kv_len + 1)


def test_auto_computes_dense_attention_where_a_method_is_that() -> None:
    query, key, value = torch.randn(3, 1, 2, 70, 16)
    assert dynattn.explain(query, key, value, Window(70)).backend == "cpu"
    assert dynattn.explain(query, key, value, Window(69)).backend == "blockwise"
    assert dynattn.explain(query, key, value, Window(70), backend="blockwise").backend == "blockwise"
    out, aux = dynattn.attention(query, key, value, Window(70), causal=True, return_aux=True)
    want, _ = dynattn.attention(query, key, value, Window(70), causal=True, return_aux=True, backend="reference")
    torch.testing.assert_close(out, want)
    assert (aux.kept_mass == 1).all()
