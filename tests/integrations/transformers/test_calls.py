"""Whoever observes sees every call of attention, until the observation ends."""

from __future__ import annotations

import pytest
import torch

import dynattn

transformers = pytest.importorskip("transformers", reason="needs dynattn[transformers]")

from dynattn.integrations.transformers import Call, contracts, observing  # noqa: E402
from dynattn.methods import TopK  # noqa: E402
from tests.integrations.transformers.tiny import text, tiny, with_attention  # noqa: E402


@torch.no_grad()
def test_observing_sees_every_call_and_ends():
    model, seen = with_attention(tiny("vit"), "dynattn:nm-1-2"), []

    def callback(call: Call) -> None:
        _, aux = dynattn.attention(
            call.query, call.key, call.value, call.method,
            attn_mask=call.attn_mask, causal=call.causal, scale=call.scale, return_aux=True,
        )  # fmt: skip
        seen.append((call.layer, aux.kept_mass.mean().item()))

    pixels = torch.randn(2, 3, 20, 20, dtype=torch.float64)
    with observing(callback):
        model(pixels)
        model(pixels)
    model(pixels)
    assert [layer for layer, _ in seen] == [0, 1, 0, 1]
    assert all(0.5 <= mass < 1 for _, mass in seen)


@torch.no_grad()
def test_additive_masks_forbid_in_what_is_observed():
    """A call that is observed with dense attention is tried with methods that have to tell allowed keys apart."""
    model, calls = with_attention(tiny("llama"), "dynattn:dense"), []
    contracts.note(type(model.config), contracts.Contract.ADDED, sdpa=True)
    with observing(calls.append):
        model(**text(padding="left"))
    call = calls[0]
    assert call.attn_mask.dtype.is_floating_point
    assert set(call.attn_mask.unique().tolist()) == {0.0, -torch.inf}
    _, aux = dynattn.attention(call.query, call.key, call.value, TopK(k=1), attn_mask=call.attn_mask, return_aux=True)
    rows = (call.attn_mask == 0).any(-1)
    assert aux.density[:, 0].allclose(rows.sum((1, 2)) / (call.attn_mask == 0).sum((1, 2, 3)))
