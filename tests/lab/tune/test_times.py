"""Times of candidates, and of what they are held against."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("transformers", reason="needs dynattn[transformers]")

import dynattn
from dynattn import NM
from dynattn.integrations.transformers import Call
from dynattn.lab.figures import BASELINE
from dynattn.lab.tune import times


def _calls() -> list[Call]:
    query, key, value = (torch.randn(2, heads, 24, 8) for heads in (4, 2, 2))
    seen = torch.rand(2, 1, 24, 24) > 0.3
    seen |= torch.eye(24, dtype=torch.bool)  # no row is empty: PyTorch gives NaN for those
    masks = (None, seen, torch.randn(2, 1, 24, 24).masked_fill(~seen, -torch.inf))
    one = Call(0, torch.nn.Identity(), query, key, value, NM(1, 1), None, True, 0.3)
    calls = [one._replace(attn_mask=mask, causal=causal) for mask in masks for causal in (False, True)]
    return [*calls, one._replace(query=query[:, :, -5:])]


@pytest.mark.parametrize("call", _calls())
def test_pytorchs_attention_is_timed_on_the_same_problem(call):
    expected = dynattn.attention(
        call.query, call.key, call.value, NM(1, 1), attn_mask=call.attn_mask, causal=call.causal, scale=call.scale
    )
    torch.testing.assert_close(times._attend(call, times._mask(call)), expected, rtol=1e-4, atol=1e-5)


def test_every_candidate_is_timed_beside_both_dense_attentions():
    seconds, _ = times._clocked(_calls()[:1], ["nm-1-2"], 0.01)
    assert set(seconds) == {BASELINE, "dense", "nm-1-2"}
    assert times.sdpa_seconds(seconds) == seconds[BASELINE]
    assert times.sdpa_seconds({"dense": 2.0}) == 2.0
