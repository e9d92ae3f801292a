"""Windows block by block: what the backend refuses, and that it computes blocks by the backend that it is given."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import dynattn
from dynattn import NM, TopK, Window
from dynattn.backends import backends
from dynattn.backends.blockwise import Blockwise
from dynattn.backends.problem import Call, Problem
from dynattn.backends.reference import Reference


@pytest.mark.parametrize(
    ("method", "options", "reason"),
    [
        (NM(1, 2), {}, "it computes windows, and nm-1-2 is another method"),
        (TopK(k=3), {}, "it computes windows, and topk-3 is another method"),
        (Window(4), {"return_aux": True}, "the kept mass needs the scores of all pairs"),
        (Window(4), {"dropout_p": 0.5}, "it draws other pairs for dropout"),
    ],
)
def test_what_it_refuses(method: Any, options: dict[str, Any], reason: str) -> None:
    query, key, value = torch.randn(3, 1, 2, 9, 8)
    with pytest.raises(RuntimeError, match=f"backend 'blockwise' cannot run this: {reason}"):
        dynattn.attention(query, key, value, method, backend="blockwise", **options)


def test_the_blocks_are_dense_attention_under_a_mask_of_each_query() -> None:
    asked: list[Problem] = []

    def fastest(problem: Problem) -> Reference:
        asked.append(problem)
        return Reference()

    query, key, value = torch.randn(3, 1, 2, 300, 8)
    call = Call(query, key, value, None, None, Window(20, 2), True, 0.3, 0.0, False, False)
    found = Blockwise(fastest).run(call).out
    want = dynattn.attention(query, key, value, Window(20, 2), causal=True, scale=0.3, backend="reference")
    torch.testing.assert_close(found, want)
    (blocks,) = asked
    assert blocks.method.keeps_everything
    assert (blocks.masked, blocks.mask_by_query, blocks.causal) == (True, True, False)
    assert "blockwise" in backends()
