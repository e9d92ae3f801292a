"""Tiny random models, texts for them, and what tests of Transformers compare."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

transformers = pytest.importorskip("transformers", reason="needs dynattn[transformers]")


VOCABULARY = 97
TOKENS = {"vocab_size": VOCABULARY, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": None}
SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}


def tiny(name: str, **overrides) -> Any:
    """A random model with float64 weights large enough that attention is far from uniform."""
    torch.manual_seed(0)
    make = {
        "bert": lambda o: transformers.BertModel(transformers.BertConfig(**TOKENS, **SMALL, **o)),
        "llama": lambda o: transformers.LlamaForCausalLM(
            transformers.LlamaConfig(**{**TOKENS, **SMALL, "num_key_value_heads": 2, **o})
        ),
        "mistral": lambda o: transformers.MistralForCausalLM(
            transformers.MistralConfig(**TOKENS, **SMALL, num_key_value_heads=2, sliding_window=5, **o)
        ),
        "gemma2": lambda o: transformers.Gemma2ForCausalLM(
            transformers.Gemma2Config(**TOKENS, **SMALL, num_key_value_heads=2, head_dim=8, sliding_window=5, **o)
        ),
        "gpt2": lambda o: transformers.GPT2LMHeadModel(
            transformers.GPT2Config(**TOKENS, n_embd=32, n_layer=2, n_head=4, n_positions=64, **o)
        ),
        "gpt_oss": lambda o: transformers.GptOssForCausalLM(
            transformers.GptOssConfig(
                **TOKENS, **SMALL, num_key_value_heads=2, head_dim=8, num_local_experts=2, num_experts_per_tok=1, **o
            )
        ),
        "t5": lambda o: transformers.T5ForConditionalGeneration(
            transformers.T5Config(
                **TOKENS, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, decoder_start_token_id=0, **o
            )
        ),
        "vit": lambda o: transformers.ViTModel(transformers.ViTConfig(**SMALL, image_size=20, patch_size=4, **o)),
        "whisper": lambda o: transformers.WhisperForConditionalGeneration(
            transformers.WhisperConfig(
                **TOKENS, d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4,
                decoder_attention_heads=4, encoder_ffn_dim=48, decoder_ffn_dim=48, num_mel_bins=8,
                max_source_positions=25, max_target_positions=40, decoder_start_token_id=1, **o,
            )
        ),
    }  # fmt: skip
    model = make[name](overrides)
    for parameter in model.parameters():
        if parameter.dim() == 2:
            parameter.data.mul_(6)
    return model.double().eval()


def with_attention(model: Any, name: str) -> Any:
    """A copy of the model that attends by ``name``, so that both stay usable."""
    other = copy.deepcopy(model)
    other.set_attn_implementation(name)
    assert other.config._attn_implementation == name
    return other


def assert_equal(actual: torch.Tensor, expected: torch.Tensor, rows: torch.Tensor | None = None) -> None:
    """Equal to float64 rounding, at the rows (batch, length) that are not padding."""
    if rows is not None:
        actual, expected = actual[rows.bool()], expected[rows.bool()]
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9 * float(expected.abs().max()))


def text(batch: int = 3, length: int = 13, padding: str | None = None) -> dict[str, torch.Tensor]:
    """Random tokens, and a padding mask that gives each sample another length."""
    ids = torch.randint(2, VOCABULARY, (batch, length), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    for i in range(batch if padding else 0):
        mask[i, : 2 * i] = 0
    if padding == "right":
        mask = mask.flip(1)
    return {"input_ids": ids.where(mask.bool(), 0), "attention_mask": mask}


def feels_attention(model: Any, inputs: dict[str, torch.Tensor]) -> None:
    """The model's outputs depend on which keys are kept: the comparison would see a wrong mask."""
    with torch.no_grad():
        dense, sparse = (with_attention(model, f"dynattn:{m}")(**inputs)[0] for m in ("dense", "nm-1-3"))
    assert (dense - sparse).abs().max() > 1e-3 * dense.abs().max()


def chunks_of(model: Any, inputs: dict[str, torch.Tensor], sizes: list[int], cache) -> torch.Tensor:
    """Logits of a text fed piece by piece through a key-value cache."""
    logits, start = [], 0
    positions = (inputs["attention_mask"].cumsum(-1) - 1).clamp(min=0)
    for size in sizes:
        stop = start + size
        out = model(
            input_ids=inputs["input_ids"][:, start:stop], attention_mask=inputs["attention_mask"][:, :stop],
            position_ids=positions[:, start:stop], past_key_values=cache, use_cache=True,
        )  # fmt: skip
        logits.append(out.logits)
        start = stop
    return torch.cat(logits, dim=1)


def cache_of(kind: str, model: Any, length: int = 20):
    """A cache as generate() makes it; the static one is longer than the text."""
    if kind == "dynamic":
        return transformers.DynamicCache(config=model.config)
    return transformers.StaticCache(config=model.config, max_cache_len=length)
