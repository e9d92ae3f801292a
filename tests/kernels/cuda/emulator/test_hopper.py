"""The emulator's sm_90a instructions by themselves: operands in shared memory as the PTX ISA lays them out, stores."""

from __future__ import annotations

import ctypes

import pytest
import torch
from torch import Tensor

from dynattn.kernels.cuda import emulator
from tests.kernels.cuda.emulator.test_emulator import bits, offset

pytestmark = pytest.mark.skipif(emulator.unavailable_reason() is not None, reason=str(emulator.unavailable_reason()))

ENTRY = """
#include "emulator/driver.hpp"
#include "wgmma_tiles.cuh"
using namespace dynattn;
template <int FRAGMENTS, bool TRANSPOSED>
void product(u64 a, u64 b, const unsigned char* image, long long bytes, int accumulate, float* d) {
  if (threadIdx.x == 0) memcpy(emulator::shared_memory, image, bytes);
  block_barrier();
  float own[FRAGMENTS][4];
  memcpy(own, d + threadIdx.x * FRAGMENTS * 4, sizeof own);
  products_fence();
  multiply_shared<BFloat16, TRANSPOSED>(own, a, b, accumulate);
  products_commit();
  products_wait<0>();
  memcpy(d + threadIdx.x * FRAGMENTS * 4, own, sizeof own);
}
extern "C" int shared_product(int columns, int transposed, u64 a, u64 b, const unsigned char* image, long long bytes,
                              int accumulate, float* d) {
  return emulator::run_grid(1, 128, bytes, {}, [=] {
    const auto run = columns == 64 ? (transposed ? product<8, true> : product<8, false>)
                                   : (transposed ? product<16, true> : product<16, false>);
    run(a, b, image, bytes, accumulate, d);
  });
}
extern "C" int stored(const int* addresses, const u32* r, unsigned char* image, long long bytes) {
  return emulator::run_grid(1, 32, bytes, {}, [=] {
    const u32* own = r + 4 * threadIdx.x;
    store_matrices(addresses[threadIdx.x], own[0], own[1], own[2], own[3]);
    if (threadIdx.x == 0) memcpy(image, emulator::shared_memory, bytes);
  });
}
extern "C" int product_of_stored(int fence, int barrier) {
  return emulator::run_grid(1, 128, 8192, {}, [=] {
    store_matrices(16 * threadIdx.x, 0, 0, 0, 0);
    if (fence) stores_fence();
    if (barrier) warpgroup_barrier(1);
    float d[8][4];
    multiply_shared<BFloat16, true>(d, descriptor(0, 0, 1024), descriptor(4096, 0, 1024), false);
    products_commit();
    products_wait<0>();
  });
}
extern "C" int shared_barrier(int first, int second) {
  return emulator::run_grid(1, 256, 0, {}, [=] { warpgroup_barrier(threadIdx.x < 128 ? first : second); });
}
"""
DEPTH, ATOM, LEADING = 16, 1024, 16384  # columns of A; bytes from 8 rows to the next 8; from 64 columns to the next 64
IMAGE = 65536


def call(name: str, *arguments: int | Tensor | ctypes.c_ulonglong) -> str | None:
    """Runs a function of ENTRY; the emulator's words where it refuses."""
    library = emulator.build(ENTRY)
    pointers = [
        ctypes.c_void_p(x.data_ptr()) if isinstance(x, Tensor) else ctypes.c_longlong(x) if isinstance(x, int) else x
        for x in arguments
    ]
    return library.emulator_error().decode() if getattr(library, name)(*pointers) else None


def descriptor(start: int) -> ctypes.c_ulonglong:
    """Matrix descriptor: fields in 16 bytes from bits 0 (start), 16 (leading) and 32 (stride); 1 in bits 62 and 63."""
    return ctypes.c_ulonglong(start >> 4 | LEADING >> 4 << 16 | ATOM >> 4 << 32 | 1 << 62)


def place(image: Tensor, start: int, matrix: Tensor, transposed: bool) -> None:
    """Writes (rows of A or columns of B, depth) by the canonical layouts of the 128-byte swizzle, T = 8 elements:

    K-major ((8, m), (T, 2k)) : ((8T, SBO), (1, T));  MN-major ((T, 8, m), (8, k)) : ((1, T, LBO), (8T, SBO)).
    """
    for across in range(matrix.shape[0]):
        for depth in range(DEPTH):
            if transposed:
                at = offset((8, 8, 2), (1, 8, LEADING // 2), across) + offset((8, 2), (64, ATOM // 2), depth)
            else:
                at = offset((8, 16), (64, ATOM // 2), across) + depth
            address = start + 2 * at
            address ^= (address >> 7 & 7) << 4  # Swizzle<3, 4, 3>
            image[address : address + 2] = matrix[across, depth].view(1).view(torch.uint8)


def result(d: Tensor, columns: int) -> Tensor:
    """The matrix 64 x columns of which thread 32 w + 4 g + t holds rows 16 w + g (+ 8) and columns 8 n + 2 t (+ 1)."""
    return d.view(4, 8, 4, columns // 8, 2, 2).permute(0, 4, 1, 3, 2, 5).reshape(64, columns)


@pytest.mark.parametrize("accumulate", [0, 1])
@pytest.mark.parametrize("transposed", [0, 1])
@pytest.mark.parametrize("columns", [64, 128])
def test_operands_in_shared_memory(columns: int, transposed: int, accumulate: int) -> None:
    generator = torch.Generator().manual_seed(columns + transposed)
    a, b = (torch.randint(-9, 10, (n, DEPTH), generator=generator).bfloat16() for n in (64, columns))
    image = torch.full((IMAGE,), 0xFF, dtype=torch.uint8)  # NaN
    step = 32 if not transposed else 2 * ATOM  # the second 16 of the depth
    starts = 1024 + step, 32768 + step
    for start, matrix in zip(starts, (a, b), strict=True):
        place(image, start, matrix, bool(transposed))
    d = torch.randint(-9, 10, (128, columns // 2), generator=generator).float()
    want = result(d.clone(), columns) * accumulate + a.float() @ b.float().mT
    assert call("shared_product", columns, transposed, *map(descriptor, starts), image, IMAGE, accumulate, d) is None
    assert torch.equal(result(d, columns), want)


def test_stored_matrices() -> None:
    """Lane 4g + t has columns 2t and 2t + 1 of row g of each matrix; the rows go where lanes 8j … say."""
    generator = torch.Generator().manual_seed(0)
    matrices = torch.randint(-9, 10, (4, 8, 8), generator=generator).bfloat16()
    words = matrices.view(4, 8, 4, 2)
    registers = (bits(words[..., 0]) | bits(words[..., 1]) << 16).flatten(1).mT.to(torch.int32).contiguous()
    places = torch.randperm(32, generator=generator).int()
    image = torch.zeros(512, dtype=torch.uint8)
    assert call("stored", 16 * places, registers, image, 512) is None
    assert torch.equal(image.view(torch.bfloat16).view(32, 8)[places.long()], matrices.flatten(0, 1))


@pytest.mark.parametrize(("fence", "barrier"), [(0, 0), (1, 0), (0, 1), (1, 1)])
def test_products_see_stores_after_a_fence_and_a_barrier(fence: int, barrier: int) -> None:
    refused = call("product_of_stored", fence, barrier)
    assert (refused is None) == bool(fence and barrier)
    assert refused is None or "without a fence and a barrier" in refused


def test_a_named_barrier_belongs_to_one_warpgroup() -> None:
    assert call("shared_barrier", 1, 2) is None
    assert "another warpgroup" in str(call("shared_barrier", 1, 1))
    assert "or none" in str(call("shared_barrier", 0, 2))
