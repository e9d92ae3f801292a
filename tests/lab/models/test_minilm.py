"""MiniLM with the right weights tells meanings apart."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("transformers", reason="needs dynattn[transformers]")
from tests.lab.models.packaged import pretrained

pytestmark = pytest.mark.model


@torch.no_grad()
def test_minilm_tells_meanings_apart():
    loaded = pretrained("minilm")
    texts = ["A man is playing a guitar.", "Someone plays an instrument.", "The stock market fell sharply."]
    batch = loaded.processor(texts, padding=True, return_tensors="pt")
    states, mask = loaded.model(**batch).last_hidden_state, batch["attention_mask"].unsqueeze(-1)
    vectors = torch.nn.functional.normalize((states * mask).sum(1) / mask.sum(1), dim=-1)
    alike, apart, _ = (vectors @ vectors.T)[torch.triu(torch.ones(3, 3), 1).bool()]
    assert alike > 0.5 > 0.2 > apart
