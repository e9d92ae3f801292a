"""Methods that shorten the sequence: which models they fit, and how the strongest that keeps the limits is found."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("transformers")

from dynattn.lab.models import load
from dynattn.lab.tune import shorten
from dynattn.pruning import parse

NAMES = tuple("abcdefg")


@pytest.mark.parametrize("limit", range(8))
def test_the_strongest_that_keeps_the_limits_is_found_in_few_measurements(limit):
    seen = []

    def keeps(name):
        seen.append(name)
        return NAMES.index(name) < limit

    assert shorten.strongest(NAMES, keeps, lambda: True) == (NAMES[limit - 1] if limit else None)
    assert len(seen) == shorten.MEASURED


def test_without_time_nothing_is_measured():
    assert shorten.strongest(NAMES, lambda name: pytest.fail(name), lambda: False) is None


def test_after_a_failed_proof_fewer_tokens_are_taken_out():
    assert shorten.milder([("x",), NAMES], "d") == "b"
    assert shorten.milder([NAMES], "b") is None


def test_encoders_can_be_shortened_and_decoders_cannot(tiny_encoder, tiny_decoder):
    found = shorten.families(load(str(tiny_encoder)).model, 64)
    assert len(found) == 3
    for names in found:
        assert [parse(name).name for name in names] == list(names)
    assert shorten.measurements(found) == 4 * shorten.MEASURED
    assert shorten.families(load(str(tiny_decoder)).model, 64) == ()
    assert shorten.measurements(()) == 0


@torch.no_grad()
def test_states_of_tokens_that_are_taken_out_are_zero_in_a_text_encoder_and_the_model_is_whole_again(tiny_encoder):
    pretrained = load(str(tiny_encoder))
    inputs = {"input_ids": torch.arange(40)[None] % 60}
    before = pretrained.model(**inputs).last_hidden_state
    with shorten.shortening(pretrained, "spatten-0.4"):
        after = pretrained.model(**inputs).last_hidden_state
    gone = (after == 0).all(-1).sum()
    assert 0 < gone < 40
    with shorten.shortening(pretrained, None):
        torch.testing.assert_close(pretrained.model(**inputs).last_hidden_state, before)
