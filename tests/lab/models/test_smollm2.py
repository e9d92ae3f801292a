"""SmolLM2 with the right weights answers."""

from __future__ import annotations

import pytest

pytest.importorskip("transformers", reason="needs dynattn[transformers]")

from dynattn.integrations.transformers import register
from tests.lab.models.packaged import pretrained

pytestmark = pytest.mark.model


@pytest.mark.parametrize("attention", ["sdpa", "dynattn:nm-2-4"])
def test_smollm2_answers(attention):
    loaded = pretrained("smollm2")
    register()
    loaded.model.set_attn_implementation(attention)
    chat = [{"role": "user", "content": "What is the capital of France? Answer in one word."}]
    prompt = loaded.processor.apply_chat_template(
        chat, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    out = loaded.model.generate(**prompt, max_new_tokens=8, do_sample=False)
    loaded.model.set_attn_implementation("sdpa")
    answer = loaded.processor.decode(out[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True)
    assert "Paris" in answer
