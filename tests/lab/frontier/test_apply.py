"""Pruned tokens do not count in what averages over them."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("pydantic")

from dynattn.lab.frontier.apply import applied
from dynattn.lab.models import Kind, Pretrained
from dynattn.pruning import SpAtten
from tests.pruning.models import inputs, make


@pytest.mark.parametrize(("kind", "architecture"), [("encoder", "bert"), ("vision", "vit")])
def test_pruned_tokens_of_sentence_encoders_are_zero(kind: Kind, architecture: str):
    model, given = make(architecture), inputs(architecture)
    pretrained = Pretrained("tiny", model, None, kind, "random weights")
    with torch.no_grad():
        with applied(pretrained, "spatten-0.5") as implementation:
            out = model(**given).last_hidden_state
        with SpAtten(0.5).apply(model, zero_pruned=kind == "encoder"):
            assert torch.equal(out, model(**given).last_hidden_state)
    assert implementation == "sdpa"
    assert bool((out == 0).all(-1).any()) == (kind == "encoder")
