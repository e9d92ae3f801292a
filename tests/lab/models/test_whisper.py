"""Whisper with the right weights knows silence from speech."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("transformers", reason="needs dynattn[transformers]")

from dynattn.integrations.transformers import register
from tests.lab.models.packaged import pretrained

pytestmark = pytest.mark.model


def test_whisper_knows_silence_from_speech():
    """Right weights call silence "no speech", and generate() finds language, task and start in the converted files."""
    loaded = pretrained("whisper")
    silence = loaded.processor(torch.zeros(16000).numpy(), sampling_rate=16000, return_tensors="pt").input_features
    with torch.no_grad():
        start = loaded.model(input_features=silence, decoder_input_ids=torch.tensor([[50258]])).logits[0, -1]
    assert start.softmax(-1)[50362] > 0.5
    register()
    tokens = {}
    for attention in ("sdpa", "dynattn:dense"):
        loaded.model.set_attn_implementation(attention)
        tokens[attention] = loaded.model.generate(silence, max_new_tokens=8)
    loaded.model.set_attn_implementation("sdpa")
    assert torch.equal(tokens["sdpa"], tokens["dynattn:dense"])
    assert loaded.processor.batch_decode(tokens["sdpa"])[0]
