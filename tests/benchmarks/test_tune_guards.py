"""The script that records what an audit costs: its own time apart from the method's."""

from __future__ import annotations

import pytest
import torch

transformers = pytest.importorskip("transformers")


def test_the_audits_own_time_is_told_apart_from_the_methods(script):
    guards = script("tune_guards")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=32, max_position_embeddings=256,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config).eval()
    inputs = {"input_ids": torch.arange(200)[None] % 60, "use_cache": False, "logits_to_keep": 1}
    with torch.inference_mode():
        found = guards.record(model, inputs, ("nm-1-2", "topk-0.25"), 2)
    assert [each["method"] for each in found] == ["nm-1-2", "topk-0.25"]
    for each in found:
        assert 0 < each["audit"]["median"] < 100
        assert each["seconds"]["median"] > 0
        assert each["speedup"]["median"] > 0
        assert 0.3 < each["kept_mass"] <= 1
    assert "clocked" not in guards.Audit._see.__qualname__
