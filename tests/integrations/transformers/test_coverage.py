"""Which modules take part is found in their classes' code, and printed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

transformers = pytest.importorskip("transformers", reason="needs dynattn[transformers]")

from dynattn.integrations.transformers import Coverage, coverage, observing, register  # noqa: E402
from tests.integrations.transformers.forms import BY_PARAMETERS, OTHER, SHOWN  # noqa: E402
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


@pytest.mark.parametrize("make", SHOWN, ids=lambda make: make.__name__)
def test_attention_is_found_whatever_its_module_is_called(make):
    found = coverage(make())
    assert found.own, found
    assert not found.unknown


@pytest.mark.parametrize("make", [*OTHER, *BY_PARAMETERS], ids=lambda make: make.__name__)
def test_what_is_no_attention_is_not_named(make):
    assert coverage(make()) == Coverage((), (), (), ())


@pytest.mark.parametrize("around", ["model", "layer"])
def test_attention_beside_modules_that_take_part_is_named(around):
    """In the forward of the model itself, or of a layer that holds a module that asks."""
    inner = transformers.models.llama.modeling_llama.LlamaAttention
    base: Any = transformers.PreTrainedModel if around == "model" else nn.Module

    class Whole(base):
        config_class = transformers.LlamaConfig
        _supports_sdpa = True

        def __init__(self, config: Any) -> None:
            super().__init__(*([config] if around == "model" else []))
            self.inner = inner(config, 0)
            if around == "model":
                self.post_init()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            mixed = (x @ x.mT).softmax(-1) @ x
            return self.inner(mixed, None, None)[0]

    class Head(transformers.PreTrainedModel):
        config_class = transformers.LlamaConfig
        _supports_sdpa = True

        def __init__(self, config: Any) -> None:
            super().__init__(config)
            self.whole = Whole(config)
            self.post_init()

    model = (Whole if around == "model" else Head)(transformers.LlamaConfig(**TOKENS, **SMALL))
    with pytest.warns(UserWarning, match=r"in part: 1 of its attention modules.*\(Whole\)"):
        model.set_attn_implementation("dynattn:dense")
    found = coverage(model)
    assert [part.kind for part in found.own] == ["Whole"]
    assert [part.kind for part in found.taking_part] == ["LlamaAttention"]
