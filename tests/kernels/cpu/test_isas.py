"""Which instruction sets run here, which of the tile engines is right, and how fast one is."""

from __future__ import annotations

import subprocess
import sys

import pytest

from dynattn.kernels.cpu import isas
from tests.kernels.cpu.conftest import ISAS
from tests.kernels.cpu.tiles.conftest import ENGINES


@pytest.mark.parametrize("name", [*ISAS, *ENGINES])
def test_what_does_not_run_here_is_said_once(name: str):
    """The tests of kernels run those that this processor runs."""
    refusal = isas.isa_refusal(name)
    if refusal is not None:
        pytest.skip(refusal)
    assert isas.isa_available(name)


def test_kernels_of_another_processor_say_so():
    other = "avx2" if isas.isa_available("neon") else "neon"
    assert not isas.isa_available(other)
    assert "other processors" in (isas.isa_refusal(other) or "")


def test_engines_of_this_processor_agree_with_the_portable_one():
    for engine in ("tiles-portable", "avx512bf16", "amx"):
        if isas.isa_available(engine):
            assert isas.tile_disagreement(engine) is None
        else:
            assert isas.tile_disagreement(engine) == "it does not run here"


def test_the_portable_engine_is_never_taken_unasked():
    assert isas.tile_isa() in (None, "amx", "avx512bf16")
    assert isas.best_isa() in ("avx512", "avx2", "neon", "portable")


def test_the_peak_is_measured():
    one = isas.fma_peak("portable", 1, 0.02)
    assert 1e8 < one < 1e13


@pytest.mark.usefixtures("forked_python")
def test_the_peak_of_more_threads_than_any_machine_has():
    """In a process of its own: a team of that size would overrun the stack of the OpenMP runtime."""
    code = "from dynattn.kernels import cpu; print(cpu.fma_peak('portable', 10**6, 0.5) > 0)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ran.stdout == "True\n", ran.stderr or ran.returncode
