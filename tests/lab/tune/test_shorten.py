"""Methods that shorten the sequence: which models they fit, and what is milder."""

from __future__ import annotations

import pytest

pytest.importorskip("transformers")

from dynattn.lab.models import load
from dynattn.lab.tune import shorten
from dynattn.pruning import parse

NAMES = tuple("abcdefg")


def test_after_a_failed_proof_fewer_tokens_are_taken_out():
    assert shorten.milder([("x",), NAMES], "d") == "b"
    assert shorten.milder([NAMES], "b") is None


def test_encoders_can_be_shortened_and_decoders_cannot(tiny_encoder, tiny_decoder):
    found = shorten.families(load(str(tiny_encoder)).model, 64)
    assert len(found) == 3
    for names in found:
        assert [parse(name).name for name in names] == list(names)
    assert shorten.measurements(len(found)) == 4 * shorten.MEASURED
    assert shorten.families(load(str(tiny_decoder)).model, 64) == ()
    assert shorten.measurements(0) == 0
