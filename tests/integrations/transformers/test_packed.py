"""Packed batches: kept apart by a mask, or refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch

transformers = pytest.importorskip("transformers", reason="needs dynattn[transformers]")

from dynattn.integrations.transformers import register  # noqa: E402
from tests.integrations.transformers.tiny import assert_equal, text, tiny, with_attention  # noqa: E402

register()
POSITIONS = torch.cat([torch.arange(8), torch.arange(5)]).unsqueeze(0)
LENGTHS = {"cu_seq_lens_q": torch.tensor([0, 8, 13]), "cu_seq_lens_k": torch.tensor([0, 8, 13])}
MAXIMA = {"max_length_q": 8, "max_length_k": 8}


def packed() -> torch.Tensor:
    return text(1, 13)["input_ids"]


@pytest.mark.parametrize("name", ["llama", "gpt2", "mistral"])
@pytest.mark.parametrize("given", ["cache", "mask", "static cache"])
@torch.no_grad()
def test_positions_that_start_anew_are_refused_where_no_block_mask_is_made(name, given):
    model = with_attention(tiny(name), "dynattn:dense")
    more: dict[str, Any] = {"use_cache": True}
    if given == "mask":
        more = {"use_cache": False, "attention_mask": torch.ones(1, 13, dtype=torch.int64)}
    if given == "static cache":
        more = {"past_key_values": transformers.StaticCache(config=model.config, max_cache_len=20)}
    with pytest.raises(ValueError, match=r"packed batches.*start anew at \[0, 8\].*use_cache=False"):
        model(packed(), position_ids=POSITIONS, **more)


@pytest.mark.parametrize("given", ["cache", "mask"])
@torch.no_grad()
def test_compiled_models_refuse_them_too(given):
    """The positions are known only while the graph runs."""
    torch._dynamo.reset()
    model = with_attention(tiny("llama"), "dynattn:dense")
    more: dict[str, Any] = {"use_cache": True}
    if given == "mask":
        more = {"use_cache": False, "attention_mask": torch.ones(1, 13, dtype=torch.int64)}
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    counted = torch.arange(13).unsqueeze(0)
    assert_equal(compiled(packed(), position_ids=counted, **more).logits, model(packed(), **more).logits)
    with pytest.raises(RuntimeError, match=r"packed batches.*start anew.*use_cache=False"):
        compiled(packed(), position_ids=POSITIONS, **more)


@pytest.mark.parametrize("given", [LENGTHS, MAXIMA, {**LENGTHS, **MAXIMA}], ids=["cu_seq_lens", "max_length", "both"])
@pytest.mark.parametrize("name", ["llama", "mistral"])
@torch.no_grad()
def test_lengths_are_refused_unless_a_block_mask_keeps_texts_apart(name, given):
    model = with_attention(tiny(name), "dynattn:dense")
    for use_cache in (False, True):
        with pytest.raises(ValueError, match="packed batches are not supported"):
            model(packed(), use_cache=use_cache, **given)
    logits = model(packed(), position_ids=POSITIONS, use_cache=False, **given).logits
    assert_equal(logits[:, :8], model(packed()[:, :8]).logits)
    assert_equal(logits[:, 8:], model(packed()[:, 8:]).logits)


@torch.no_grad()
def test_lengths_of_whole_samples_are_not_packing():
    model, inputs = with_attention(tiny("llama"), "dynattn:dense"), text(2, 6)
    plain = model(**inputs).logits
    lengths = {"cu_seq_lens_q": torch.tensor([0, 6, 12]), "cu_seq_lens_k": torch.tensor([0, 6, 12])}
    assert_equal(model(**inputs, **lengths, max_length_q=6, max_length_k=6).logits, plain)


@pytest.mark.parametrize("padding", [None, "left", "right"])
@torch.no_grad()
def test_padding_is_not_packing(padding):
    """Positions of padded texts, as generate() makes them and as others do."""
    model, inputs = with_attention(tiny("llama"), "dynattn:dense"), text(padding=padding)
    mask = inputs["attention_mask"]
    counted = mask.cumsum(-1) - 1
    expected = tiny("llama")(**inputs, position_ids=counted.clamp(min=0)).logits
    for positions in (counted.clamp(min=0), counted.masked_fill(mask == 0, 1), counted.masked_fill(mask == 0, 0)):
        assert_equal(model(**inputs, position_ids=positions).logits, expected, mask)


@torch.no_grad()
def test_sdpa_is_left_alone():
    tiny("llama")(packed(), position_ids=POSITIONS, use_cache=True)
