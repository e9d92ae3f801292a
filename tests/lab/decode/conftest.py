"""A tiny decoder, and a prompt that it has read."""

from __future__ import annotations

import pytest

pytest.importorskip("transformers")

from dynattn.lab.decode.prompt import read
from tests.lab.decode import tiny


@pytest.fixture(scope="session")
def model():
    return tiny.decoder()


@pytest.fixture(scope="session")
def ids():
    return tiny.tokens()


@pytest.fixture(scope="session")
def prompt(model, ids):
    return read(model, ids[:, : tiny.PROMPT])
