"""Lets the tests of this folder import the helpers beside them, and names the tile engines that run here."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from dynattn.kernels import cpu

sys.path.insert(0, str(Path(__file__).parent))

ENGINES = ("tiles-portable", "avx512bf16", "amx")


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest) -> str:
    if cpu.isa_refusal(request.param) is not None:
        pytest.skip(str(cpu.isa_refusal(request.param)))
    return request.param
