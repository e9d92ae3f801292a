"""Methods of the whole model by name: which kind they are of, and that the model is whole again."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("transformers")

from dynattn.lab.models import load
from dynattn.lab.tune import whole

PLAN = "bysite(nmact-1-2=0.in_nmact-2-4=1.o)"


@torch.no_grad()
def test_states_of_tokens_that_are_taken_out_are_zero_in_a_text_encoder_and_the_model_is_whole_again(tiny_encoder):
    pretrained = load(str(tiny_encoder))
    inputs = {"input_ids": torch.arange(40)[None] % 60}
    before = pretrained.model(**inputs).last_hidden_state
    with whole.applied(pretrained, "spatten-0.4"):
        after = pretrained.model(**inputs).last_hidden_state
    gone = (after == 0).all(-1).sum()
    assert 0 < gone < 40
    with whole.applied(pretrained, PLAN):
        thinner = pretrained.model(**inputs).last_hidden_state
    assert not torch.allclose(thinner, before)
    with whole.setting(PLAN).apply(pretrained.model):
        torch.testing.assert_close(pretrained.model(**inputs).last_hidden_state, thinner)
    with whole.applied(pretrained, None):
        torch.testing.assert_close(pretrained.model(**inputs).last_hidden_state, before)


def test_names_tell_their_kind():
    assert whole.split(PLAN) == {"pruning": None, "linears": PLAN}
    assert whole.split("ltp-0.01") == {"pruning": "ltp-0.01", "linears": None}
    assert whole.split(None) == {"pruning": None, "linears": None}
    assert whole.methods(PLAN) == {"0.in": "nmact-1-2", "1.o": "nmact-2-4"}
