"""The device script's probes on the emulator: their host side decodes what they compute, and notices mistakes."""

from __future__ import annotations

import ctypes
import importlib
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor

from dynattn.kernels.cuda import emulator

pytestmark = pytest.mark.skipif(emulator.unavailable_reason() is not None, reason=str(emulator.unavailable_reason()))

_SHARED_BYTES = 128 * 128 + 64 * 256 + 1024
_ENTRY = """
#include "emulator/driver.hpp"
#include "probe.cu"
#include "probe_warpgroup.cu"
using namespace dynattn;
template <int COLUMNS, int SELECTOR>
int run(const u32* a, const u32* metadata, const u32* tiles, float* scores, float* sums) {
  return emulator::run_grid(1, 128, BYTES, {}, [=] {
    probe_warpgroup<BFloat16, COLUMNS, SELECTOR>(a, metadata, tiles, scores, sums);
  });
}
extern "C" int warpgroup(int columns, int selector, const u32* a, const u32* metadata, const u32* tiles, float* scores,
                         float* sums) {
  emulator::reset_hopper();
  return (columns == 64 ? selector ? run<64, 1> : run<64, 0> : selector ? run<128, 1> : run<128, 0>)(
      a, metadata, tiles, scores, sums);
}
extern "C" int numbers(const float* a, const float* b, u32* bits) {
  return emulator::run_grid(1, 32, 0, {}, [=] { probe_numbers(a, b, bits); });
}
""".replace("BYTES", str(_SHARED_BYTES))


@pytest.fixture(scope="module")
def probe() -> ModuleType:
    """benchmarks/cuda/probe.py."""
    folder = str(Path(__file__).parents[3] / "benchmarks" / "cuda")
    sys.path.insert(0, folder)
    try:
        return importlib.import_module("probe")
    finally:
        sys.path.remove(folder)
        sys.modules.pop("device", None)


def call(name: str, *arguments: int | Tensor) -> None:
    library = emulator.build(_ENTRY)
    pointers = [ctypes.c_void_p(x.data_ptr()) if isinstance(x, Tensor) else x for x in arguments]
    assert getattr(library, name)(*pointers) == 0, library.emulator_error().decode()


@pytest.mark.parametrize("columns", [64, 128])
@pytest.mark.parametrize("selector", [0, 1])
def test_a_warpgroup(probe: ModuleType, columns: int, selector: int) -> None:
    inputs = probe.warpgroup_inputs("BFloat16", columns, torch.Generator().manual_seed(0))
    a, nibbles, key, value = inputs
    scores, sums = torch.full((128, 64), torch.nan), torch.full((128, columns // 2), torch.nan)
    tiles = probe.warpgroup_tiles(key, value)
    call("warpgroup", columns, selector, a.contiguous(), probe.words(nibbles), tiles, scores, sums)
    right = probe.warpgroup_expected(*inputs, selector)
    for mine, wanted in zip((scores, sums), right, strict=True):
        torch.testing.assert_close(probe.warpgroup_matrix(mine).double(), wanted, rtol=1e-4, atol=1e-4)
    other = probe.warpgroup_expected(*inputs, 1 - selector)[1]
    assert (probe.warpgroup_matrix(sums).double() - other).abs().max() > 1


def test_numbers(probe: ModuleType) -> None:
    pairs, bits = torch.tensor(probe._NUMBERS), torch.zeros(32, 8, dtype=torch.int32)
    padded = torch.cat([pairs, torch.zeros(32 - len(pairs), 2)])
    call("numbers", *(x.contiguous() for x in padded.T), bits)
    bits = bits[: len(pairs)]
    # the emulator does not flush denormal numbers; the kernels never take the logarithm of one
    assert [words.split(" of")[0] for words in probe.wrong_numbers(pairs, bits)] == ["lg2"]
    for at, name in enumerate(("ex2", "lg2", "max.NaN", "min.NaN", "max", "cvt.bf16x2", "cvt.f16x2", "cvt.rna.tf32")):
        changed = bits.clone()
        changed[8, at] ^= 1 << 16
        assert any(words.startswith(name + " of") for words in probe.wrong_numbers(pairs, changed)), name
