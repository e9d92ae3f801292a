"""Which modules take part is found in their classes' code, and printed."""

from __future__ import annotations

import pytest
import torch
from torch import nn

transformers = pytest.importorskip("transformers", reason="needs dynattn[transformers]")

from dynattn.integrations.transformers import Coverage, coverage, observing, register  # noqa: E402
from tests.integrations.transformers.tiny import SMALL, TOKENS, text, tiny, with_attention  # noqa: E402

register()


@torch.no_grad()
def test_every_module_that_takes_part_is_called():
    model, seen = with_attention(tiny("t5"), "dynattn:dense"), []
    with observing(lambda call: seen.append(call.module)):
        model(**text(), decoder_input_ids=text()["input_ids"])
    names = {module: name for name, module in model.named_modules()}
    assert {names[module] for module in seen} == {part.name for part in coverage(model).taking_part}
    assert {part.implementation for part in coverage(model).taking_part} == {"dynattn:dense"}


def test_other_implementations_are_told_apart():
    model = tiny("llama")
    found = coverage(model)
    assert not found.taking_part
    assert [part.name for part in found.elsewhere] == ["model.layers.0.self_attn", "model.layers.1.self_attn"]
    assert {part.implementation for part in found.elsewhere} == {"sdpa"}


def test_it_prints_well():
    text_config = {**TOKENS, **SMALL, "max_position_embeddings": 64}
    model = transformers.EncoderDecoderModel(
        encoder=transformers.MPNetModel(transformers.MPNetConfig(**text_config)),
        decoder=transformers.BertLMHeadModel(
            transformers.BertConfig(**text_config, is_decoder=True, add_cross_attention=True)
        ),
    )
    with pytest.warns(UserWarning, match="MPNet"):
        model.set_attn_implementation("dynattn:nm-2-4")
    assert str(coverage(model)) == (
        "4 attention modules take part\n"
        "  decoder.bert.encoder.layer.*.attention.self: BertSelfAttention, dynattn:nm-2-4 (2)\n"
        "  decoder.bert.encoder.layer.*.crossattention.self: BertCrossAttention, dynattn:nm-2-4 (2)\n"
        "2 attention modules keep attention of their own\n"
        "  encoder.encoder.layer.*.attention.attn: MPNetSelfAttention (2)"
    )
    assert str(coverage(nn.Linear(2, 2))) == "0 attention modules take part"


def test_attention_that_no_code_shows_is_unknown():
    class NovelAttention(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.fft.fft(x).real

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = NovelAttention()
            self.other = nn.MultiheadAttention(8, 2)

    found = coverage(Block())
    assert isinstance(found, Coverage)
    assert [part.name for part in found.unknown] == ["attention"]
    assert [part.name for part in found.own] == ["other"]
    assert "do" in str(found)
