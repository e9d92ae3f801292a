"""The tile engines that run here."""

from __future__ import annotations

import pytest

from dynattn.kernels import cpu

ENGINES = ("tiles-portable", "avx512bf16", "amx")


@pytest.fixture(params=[engine for engine in ENGINES if cpu.isa_refusal(engine) is None])
def engine(request: pytest.FixtureRequest) -> str:
    """Those that run here: test_isas.py says which do not, and why, once each."""
    return request.param
