"""A fresh copy is the model without dropout in its attention."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

pytest.importorskip("accelerate")
pytest.importorskip("matplotlib")


from dynattn.lab.finetune.pretrained import fresh
from dynattn.lab.models import load


@pytest.mark.parametrize("method", ["sdpa", "nm-1-2"])
def test_a_fresh_copy_is_the_model_without_attention_dropout(tiny_encoder: Path, method: str):
    base = load(str(tiny_encoder)).model
    copy = fresh(base, method)
    assert copy.config.attention_probs_dropout_prob == 0
    assert (base.config.attention_probs_dropout_prob, copy.config.hidden_dropout_prob) == (0.1, 0.1)
    assert copy.config._attn_implementation == (method if method == "sdpa" else f"dynattn:{method}")
    assert base.config._attn_implementation == "sdpa"
    ids = torch.arange(2, 18)[None]
    dense = copy.eval()
    dense.set_attn_implementation("sdpa")
    with torch.inference_mode():
        torch.testing.assert_close(dense(ids).last_hidden_state, base(ids).last_hidden_state)
    with torch.no_grad():
        next(copy.parameters()).add_(1)
    assert not torch.equal(next(copy.parameters()), next(base.parameters()))
