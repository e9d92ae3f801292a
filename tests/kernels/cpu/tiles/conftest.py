"""The tile engines that run here."""

from __future__ import annotations

import pytest

from dynattn.kernels import cpu

ENGINES = ("tiles-portable", "avx512bf16", "amx")


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest) -> str:
    if cpu.isa_refusal(request.param) is not None:
        pytest.skip(str(cpu.isa_refusal(request.param)))
    return request.param
