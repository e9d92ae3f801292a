"""Continuous batching, which keeps keys in pages, against ``generate()`` one text after another."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from dynattn.integrations import requests
from dynattn.integrations.transformers import assign, assigned, attention_modules, observing, paged
from dynattn.methods import parse
from tests.integrations.transformers.tiny import tiny, transformers, with_attention

PROMPTS = [[1, *range(5, 5 + length)] for length in (40, 3, 17, 61)]
NEW = 12
NUMBERS = range(len(PROMPTS))


def config(**changes: Any) -> Any:
    """Little memory, and in a step so few tokens that the long prompts come in parts."""
    given = {"max_batch_tokens": 24, "num_blocks": 64, "block_size": 16, **changes}
    return transformers.ContinuousBatchingConfig(**given)


def batched(model: Any, **changes: Any) -> list[list[int]]:
    options = transformers.GenerationConfig(max_new_tokens=NEW, do_sample=False, eos_token_id=-1, pad_token_id=0)
    found = model.generate_batch(
        PROMPTS, generation_config=options, continuous_batching_config=config(**changes), progress_bar=False
    )
    assert len(found) == len(PROMPTS)
    by_prompt = {tuple(one.prompt_ids): one.generated_tokens for one in found.values()}
    return [by_prompt[tuple(prompt)] for prompt in PROMPTS]


def one_by_one(model: Any) -> list[list[int]]:
    return [
        model.generate(torch.tensor([prompt]), max_new_tokens=NEW, do_sample=False)[0, len(prompt) :].tolist()
        for prompt in PROMPTS
    ]


@pytest.mark.parametrize("method", ["dense", "nm-2-4", "nm-1-2-w8-s2", "topk-0.25"])
def test_tokens_are_those_of_generate(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = with_attention(tiny("llama").float(), f"dynattn:{method}")
    pages: list[bool] = []
    attended = requests.varlen_attention
    monkeypatch.setattr(
        requests, "varlen_attention", lambda *a, **k: pages.append("block_table" in k) or attended(*a, **k)
    )
    found = batched(model)
    assert any(pages), "no step read pages"
    assert model.config._attn_implementation == f"dynattn:{method}"
    assert found == one_by_one(model)
    if method == "dense":
        assert found == batched(with_attention(model, "sdpa"))


@pytest.mark.parametrize(
    ("phase", "other"), [("prefill", "dense"), ("decode", "dense"), ("prefill", "window-4-s1"), ("both", "dense")]
)
def test_each_phase_has_the_method_that_it_has_in_generate(phase: str, other: str) -> None:
    model = tiny("llama", num_hidden_layers=1)
    dense, methods = one_by_one(model), dict.fromkeys(attention_modules(model), parse("nm-1-4"))
    assign(model, methods)
    assigned.put(model, methods, phase, None, parse(other))
    expected = one_by_one(model)
    assert expected != dense
    assert batched(model, max_batch_tokens=32) == expected  # of which no part of a prompt is a single token


@pytest.mark.parametrize(
    ("phase", "low", "high", "said"),
    [("decode", 5, 73, set()), ("decode", 6, 72, {"below", "above"}), ("prefill", 4, 62, set())],
)
def test_limits_are_of_each_request(
    phase: str, low: int, high: int, said: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prompts have 4 to 62 tokens, and the last step decodes the longest with 73 keys."""
    model, told = tiny("llama", num_hidden_layers=1).float(), list[str]()
    methods = {name: parse("nm-1-4") for name in attention_modules(model)}
    assign(model, methods)
    assigned.put(model, methods, phase, assigned.Limits("m.json", torch.float32, low, high))
    monkeypatch.setattr(assigned, "_warn", lambda _, __, got: told.append(got))
    batched(model, max_batch_tokens=256)
    assert {one.split()[-2] for one in told} == said


def test_texts_that_begin_alike_share_pages() -> None:
    model = with_attention(tiny("llama").float(), "dynattn:nm-2-4")
    assert batched(model, allow_block_sharing=True) == one_by_one(model)


def test_sliding_windows_are_dense_alone() -> None:
    model = with_attention(tiny("mistral").float(), "dynattn:dense")
    assert batched(model) == one_by_one(model)
    module = with_attention(model, "dynattn:nm-2-4").model.layers[0].self_attn
    with pytest.raises(ValueError, match=r"sliding window needs dense attention.*use generate\(\)"):
        paged._refuse(module, parse("nm-2-4"), True, {})


def test_what_cannot_be_is_refused() -> None:
    module = tiny("llama").model.layers[0].self_attn
    with pytest.raises(NotImplementedError, match="max_blocks_per_request=0"):
        paged._refuse(module, parse("dense"), False, {"block_table": torch.zeros(1)})
    with observing(lambda call: None), pytest.raises(ValueError, match="cannot be observed"):
        paged._refuse(module, parse("dense"), False, {})


def test_other_implementations_are_as_transformers_has_them() -> None:
    model = tiny("llama")
    model.config._attn_implementation = "flex_attention"
    with pytest.raises(ValueError, match="not supported for continuous batching"):
        model.generate_batch([[5, 6, 7]], continuous_batching_config=config(), max_new_tokens=2)
