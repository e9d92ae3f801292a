"""The ctypes loader: what it says when something is missing or refused."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys

import pytest
import torch

from dynattn import explain
from dynattn.kernels import cpu
from dynattn.kernels.cpu import loader
from dynattn.methods.nm import NM
from tests.kernels.cpu.conftest import ISAS
from tests.kernels.cpu.tiles.conftest import ENGINES


def test_the_library_is_there():
    assert cpu.unavailable_reason() is None
    assert cpu.is_available()
    assert cpu.isa_available(cpu.best_isa())
    assert cpu.isa_available("portable")
    assert not cpu.isa_available("mmx")


@pytest.mark.parametrize("name", [*ISAS, *ENGINES])
def test_what_does_not_run_here_is_said_once(name: str):
    """The tests of kernels run those that this processor runs."""
    refusal = cpu.isa_refusal(name)
    if refusal is not None:
        pytest.skip(refusal)
    assert cpu.isa_available(name)


def test_kernels_of_another_processor_say_so():
    other = "avx2" if cpu.isa_available("neon") else "neon"
    assert not cpu.isa_available(other)
    assert "other processors" in (cpu.isa_refusal(other) or "")


def test_nonsense_is_refused_before_memory_is_touched(forward):
    x = torch.zeros(1, 1, 4, 8)
    method = NM(1, 2)
    object.__setattr__(method, "n", 3)
    with pytest.raises(RuntimeError, match="out of its range"):
        forward(x, x, x, method, "portable")


def test_more_memory_than_there_is(forward):
    huge = torch.zeros(1, 1, 1, 256).expand(1, 1, 2**40, 256)  # 1 TiB of rows, of which one is in memory
    with pytest.raises(MemoryError, match="no memory"):  # few queries would read the keys in place
        forward(torch.zeros(1, 1, 32, 256), huge, huge, NM(1, 2), "portable")


def test_the_peak_is_measured():
    one = cpu.fma_peak("portable", 1, 0.02)
    assert 1e8 < one < 1e13


@pytest.mark.usefixtures("forked_python")
def test_the_peak_of_more_threads_than_any_machine_has():
    """In a process of its own: a team of that size would overrun the stack of the OpenMP runtime."""
    code = "from dynattn.kernels import cpu; print(cpu.fma_peak('portable', 10**6, 0.5) > 0)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ran.stdout == "True\n", ran.stderr or ran.returncode


@pytest.mark.parametrize("q_len", [4, 32])
def test_a_team_is_bounded_by_the_processor(q_len: int, forward, monkeypatch):
    """The kernels ask for a few threads for each processor at most, whatever they are offered."""
    asked = []

    @ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)
    def parallel(body: int, data: int, threads: int, _flags: int) -> None:
        asked.append(threads)
        ctypes.CFUNCTYPE(None, ctypes.c_void_p)(body)(data)

    monkeypatch.setattr(loader, "parallel", lambda: ctypes.cast(parallel, ctypes.c_void_p).value)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 10**6)
    query = torch.randn(500, 4, q_len, 64, generator=torch.Generator().manual_seed(0))
    got = forward(query, query, query, NM(1, 2), "portable", aux=False)
    assert not got.out.isnan().any()
    assert len(asked) == 1
    assert 1 < asked[0] <= 4 * (os.cpu_count() or 1)


def test_heads_wider_than_the_kernels_take_are_left_to_another_backend():
    narrow, wide = (torch.zeros(1, 1, 4, size) for size in (cpu.MAX_HEAD_DIM, cpu.MAX_HEAD_DIM + 1))
    assert explain(narrow, narrow, narrow, NM(1, 2)).backend == "cpu"
    assert explain(narrow, narrow, wide, NM(1, 2)).backend != "cpu"
