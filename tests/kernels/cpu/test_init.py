"""The kernels as a whole: that they are there, and the bounds of what they take and ask for."""

from __future__ import annotations

import ctypes
import os

import pytest
import torch

from dynattn import explain
from dynattn.kernels import cpu
from dynattn.kernels.cpu import loader
from dynattn.methods.nm import NM


def test_the_library_is_there():
    assert cpu.unavailable_reason() is None
    assert cpu.is_available()
    assert cpu.isa_available(cpu.best_isa())
    assert cpu.isa_available("portable")
    assert not cpu.isa_available("mmx")


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
