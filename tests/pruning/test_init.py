"""On a real sentence encoder."""

from __future__ import annotations

import pytest
import torch

from dynattn.integrations.transformers import register
from dynattn.lab.models import load
from dynattn.lab.tasks import embedding
from dynattn.pruning import LTP, RandomTokens, SpAtten

TEXTS = (
    "A pruned token is gone in all later layers, so that they are shorter, and the model is faster from end to end. "
    "What it had to say was said to the others while it was there.",
    "The library keeps what matters.",
)
METHODS = [SpAtten(0.5), SpAtten(0.5, heads=0.75), LTP(0.05), RandomTokens(0.5)]


@pytest.fixture(scope="module")
def minilm():
    return load("minilm")


@pytest.mark.model
@pytest.mark.parametrize("implementation", ["sdpa", "dynattn:nm-1-2"])
@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_minilm(minilm, method, implementation):
    register()
    model = minilm.model
    model.set_attn_implementation(implementation)
    given = embedding.inputs(minilm, TEXTS, 64)
    lengths = given["attention_mask"].sum(1).tolist()
    with torch.no_grad():
        dense = model(**given).last_hidden_state
        with method.apply(model, zero_pruned=True) as trace:
            pooled = embedding.pool(model, given)
        after = model(**given).last_hidden_state
        with method.apply(model):
            together = model(**given).last_hidden_state
            for sample, text in enumerate(TEXTS):
                alone = model(**embedding.inputs(minilm, [text], 64)).last_hidden_state[0]
                torch.testing.assert_close(together[sample, : lengths[sample]], alone, rtol=1e-3, atol=1e-4)
    assert torch.equal(dense, after)
    assert trace.last.tokens[0].tolist() == lengths
    assert (trace.last.tokens[-1] < trace.last.tokens[0]).all()
    expected = torch.nn.functional.normalize(
        torch.stack([state[kept].mean(0) for state, kept in zip(together, trace.last.survivors, strict=True)]), dim=1
    )
    torch.testing.assert_close(pooled, expected, rtol=1e-4, atol=1e-5)
    if isinstance(method, SpAtten):  # and not counting pruned tokens is what keeps an embedding in place
        embedded, stale = (_mean(states, given["attention_mask"]) for states in (dense, together))
        assert ((pooled * embedded).sum(1) > (stale * embedded).sum(1)).all()


def _mean(states, mask):
    return torch.nn.functional.normalize((states * mask.unsqueeze(-1)).sum(1), dim=1)
