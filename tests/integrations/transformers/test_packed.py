"""Packed batches: each text by itself, kept apart by a mask, or refused."""

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


def apart(model: Any, **more: Any) -> torch.Tensor:
    """The logits of both texts, each alone."""
    return torch.cat([model(packed()[:, :8], **more).logits, model(packed()[:, 8:], **more).logits], dim=1)


def given(kind: str, model: Any) -> dict[str, Any]:
    if kind == "mask":
        return {"use_cache": False, "attention_mask": torch.ones(1, 13, dtype=torch.int64)}
    if kind == "static cache":
        return {"past_key_values": transformers.StaticCache(config=model.config, max_cache_len=20)}
    return {"use_cache": kind == "cache"}


@pytest.mark.parametrize("method", ["dense", "nm-2-4", "nm-1-4-w2-s1"])
@pytest.mark.parametrize("name", ["llama", "gpt2", "mistral"])
@pytest.mark.parametrize("kind", ["nothing", "cache", "mask"])
@torch.no_grad()
def test_positions_that_start_anew_keep_texts_apart(kind, name, method):
    """Groups and windows are those of each text, too, in models that hand positions on to their attention."""
    model = with_attention(tiny(name), f"dynattn:{method}")
    logits = model(packed(), position_ids=POSITIONS, **given(kind, model)).logits
    if method == "dense" or name != "gpt2":
        assert_equal(logits, apart(model))


@torch.no_grad()
def test_padding_beside_packed_texts():
    model = with_attention(tiny("llama"), "dynattn:dense")
    ids = torch.cat([packed(), packed()[:, :3]], dim=1).repeat(2, 1)
    mask = torch.ones(2, 16, dtype=torch.int64)
    mask[0, 13:] = 0
    positions = torch.cat([POSITIONS, torch.arange(3).unsqueeze(0)], dim=1).repeat(2, 1)
    for more in ({"use_cache": False}, {"use_cache": True}):
        assert_equal(model(ids, attention_mask=mask, position_ids=positions, **more).logits[:1, :13], apart(model))


@torch.no_grad()
def test_positions_that_start_anew_are_refused_in_a_static_cache():
    model = with_attention(tiny("llama"), "dynattn:dense")
    with pytest.raises(ValueError, match=r"packed batches.*start anew at \[0, 8\].*use_cache=False"):
        model(packed(), position_ids=POSITIONS, **given("static cache", model))


@pytest.mark.parametrize("kind", ["new", "dynamic", "static", "two models"])
@pytest.mark.parametrize("told", [{"position_ids": POSITIONS}, LENGTHS, {"position_ids": POSITIONS, **LENGTHS}])
@torch.no_grad()
def test_a_cache_that_holds_several_texts_is_not_read_as_one(told, kind):
    model = with_attention(tiny("llama"), "dynattn:dense")
    if kind == "static" and "position_ids" in told:
        return  # refused before
    made = {"dynamic": transformers.DynamicCache, "static": lambda: transformers.StaticCache(model.config, 13)}
    cache = made[kind]() if kind in made else None
    cache = model(packed(), use_cache=True, past_key_values=cache, **told).past_key_values
    if kind == "two models":  # another cache in between, which holds one text
        other = model(packed(), use_cache=True).past_key_values
        model(packed()[:, :1], past_key_values=other)
    with pytest.raises(ValueError, match=r"a cache must hold one text a sample.*start from an empty cache"):
        model(packed()[:, :1], past_key_values=cache)


@pytest.mark.parametrize("kind", ["cache", "mask"])
@torch.no_grad()
def test_compiled_models_refuse_them(kind):
    """The positions are known only while the graph runs."""
    torch._dynamo.reset()
    model = with_attention(tiny("llama"), "dynattn:dense")
    more = given(kind, model)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    counted = torch.arange(13).unsqueeze(0)
    assert_equal(compiled(packed(), position_ids=counted, **more).logits, model(packed(), **more).logits)
    with pytest.raises(RuntimeError, match=r"packed batches.*start anew.*use_cache=False"):
        compiled(packed(), position_ids=POSITIONS, **more)


@pytest.mark.parametrize("more", [{}, MAXIMA], ids=["cu_seq_lens", "max_length too"])
@pytest.mark.parametrize("positions", [None, POSITIONS], ids=["no positions", "positions"])
@pytest.mark.parametrize("method", ["dense", "nm-2-4"])
@torch.no_grad()
def test_lengths_keep_texts_apart(method, positions, more):
    model = with_attention(tiny("llama"), f"dynattn:{method}")
    for use_cache in (False, True):
        logits = model(packed(), position_ids=positions, use_cache=use_cache, **LENGTHS, **more).logits
        if positions is None:  # distances are the same, and angles of rotation are rounded to float32
            torch.testing.assert_close(logits, apart(model), rtol=0, atol=1e-6)
        else:
            assert_equal(logits, apart(model))


@pytest.mark.parametrize("told", [LENGTHS, {"max_length_q": 8}], ids=["cu_seq_lens", "max_length"])
@torch.no_grad()
def test_compiled_models_refuse_lengths_that_no_mask_keeps_apart(told):
    torch._dynamo.reset()
    model = with_attention(tiny("llama"), "dynattn:dense")
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    assert_equal(compiled(packed(), position_ids=POSITIONS, use_cache=False, **told).logits, apart(model))
    with pytest.raises(RuntimeError, match=r"packed batches.*says that texts share a sample"):
        compiled(packed(), position_ids=torch.arange(13).unsqueeze(0), use_cache=False, **told)


@torch.no_grad()
def test_lengths_of_an_encoder():
    model = with_attention(tiny("bert"), "dynattn:nm-2-4")
    hidden = model(packed(), position_ids=POSITIONS, **LENGTHS).last_hidden_state
    assert_equal(hidden[:, :8], model(packed()[:, :8]).last_hidden_state)
    assert_equal(hidden[:, 8:], model(packed()[:, 8:]).last_hidden_state)


@torch.no_grad()
def test_the_longest_text_alone_is_refused_unless_a_block_mask_keeps_texts_apart():
    model = with_attention(tiny("llama"), "dynattn:dense")
    with pytest.raises(ValueError, match="packed batches are not supported: max_length_q says"):
        model(packed(), use_cache=False, **MAXIMA)
    assert_equal(model(packed(), position_ids=POSITIONS, use_cache=False, **MAXIMA).logits, apart(model))


@torch.no_grad()
def test_lengths_through_several_samples_are_refused():
    model = with_attention(tiny("llama"), "dynattn:dense")
    lengths = {name: torch.tensor([0, 8, 13, 26]) for name in LENGTHS}
    with pytest.raises(ValueError, match="packed batches are not supported: cu_seq_lens_q says"):
        model(packed().repeat(2, 1), use_cache=False, **lengths)


@torch.no_grad()
def test_a_mask_of_the_users_own_decides():
    """A tree of drafts: positions start anew, and the second branch sees the stem that the first one sees."""
    model = tiny("llama")
    mask = torch.ones(13, 13, dtype=torch.bool).tril()
    mask[8:, 3:8] = False
    more = {"attention_mask": mask[None, None], "use_cache": False}
    positions = torch.cat([torch.arange(8), torch.arange(3, 8)]).unsqueeze(0)
    dense = with_attention(model, "dynattn:dense")
    assert_equal(
        dense(packed(), position_ids=positions, **more).logits, model(packed(), position_ids=positions, **more).logits
    )


@pytest.mark.parametrize("told", [False, True], ids=["positions", "lengths too"])
@pytest.mark.parametrize("method", ["dense", "nm-2-4"])
def test_training_on_packed_texts_is_training_on_separate_ones(method, told):
    """As Trainer has it with DataCollatorWithFlattening: the model makes a cache that nobody reads."""
    collate = transformers.DataCollatorWithFlattening(return_flash_attn_kwargs=told)
    texts = [packed()[0, :8], packed()[0, 8:]]
    model = with_attention(tiny("llama"), f"dynattn:{method}").train()
    parameters = list(model.parameters())
    losses = [model(ids.unsqueeze(0), labels=ids.unsqueeze(0)).loss * (len(ids) - 1) for ids in texts]
    apart = torch.stack(losses).sum() / 11
    expected = torch.autograd.grad(apart, parameters)
    batch = collate([{"input_ids": ids} for ids in texts])
    together = model(**batch).loss
    torch.testing.assert_close(together, apart)
    for got, right in zip(torch.autograd.grad(together, parameters), expected, strict=True):
        torch.testing.assert_close(got, right, rtol=1e-4, atol=1e-6)


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


@pytest.mark.parametrize("method", ["dense", "nm-2-4"])
@torch.no_grad()
def test_padding_of_a_single_text_is_not_packing(method):
    """Groups are counted from the first slot, padding included, and the text goes on in the cache."""
    model = with_attention(tiny("llama"), f"dynattn:{method}")
    ids, mask = (value[2:] for value in text(padding="left").values())
    counted = mask.cumsum(-1) - 1
    expected = model(ids, attention_mask=mask, position_ids=counted.clamp(min=0)).logits
    positions, cache = counted.masked_fill(mask == 0, 1), transformers.DynamicCache(config=model.config)
    logits = [
        model(
            ids[:, part], attention_mask=mask[:, : part.stop], position_ids=positions[:, part], past_key_values=cache
        ).logits
        for part in (slice(0, 12), slice(12, 13))
    ]
    assert_equal(torch.cat(logits, 1), expected, mask)


@torch.no_grad()
def test_padding_is_not_packing_in_a_static_cache():
    """Positions as generate() makes them: 1 at padding, and 0 at the first token behind it."""
    model, inputs = with_attention(tiny("llama"), "dynattn:dense"), text(padding="left")
    mask = inputs["attention_mask"]
    positions = (mask.cumsum(-1) - 1).masked_fill(mask == 0, 1)
    cache = transformers.StaticCache(config=model.config, max_cache_len=20)
    logits = model(**inputs, position_ids=positions, past_key_values=cache).logits
    assert_equal(logits, model(**inputs, position_ids=positions).logits, mask)


@torch.no_grad()
def test_sdpa_is_left_alone():
    tiny("llama")(packed(), position_ids=POSITIONS, use_cache=True)
