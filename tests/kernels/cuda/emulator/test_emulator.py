"""The emulator itself: register layouts against CUTLASS's, and what it refuses."""

from __future__ import annotations

import ctypes
import itertools
import math

import pytest
import torch
from torch import Tensor
from torch.sparse._semi_structured_conversions import sparse_semi_structured_from_dense_cutlass

from dynattn.kernels.cuda import emulator

pytestmark = pytest.mark.skipif(emulator.unavailable_reason() is not None, reason=str(emulator.unavailable_reason()))

ORDERED = (0b0100, 0b1000, 0b1001, 0b1100, 0b1101, 0b1110)  # first | second << 2 with first < second

ENTRY = """
#include "emulator/driver.hpp"
#include "probe.cu"
using namespace dynattn;
template <int SELECTOR>
int product(const u32* a, const u32* b, const u32* metadata, float* c) {
  return emulator::run_grid(1, 32, 0, {}, [=] { probe_sparse_product<BFloat16, SELECTOR>(a, b, metadata, c); });
}
extern "C" int sparse_product(int selector, const u32* a, const u32* b, const u32* metadata, float* c) {
  return (selector ? product<1> : product<0>)(a, b, metadata, c);
}
template <int SELECTOR>
int product_tf32(const u32* a, const u32* b, const u32* metadata, float* c) {
  return emulator::run_grid(1, 32, 0, {}, [=] { probe_sparse_product<TensorFloat32, SELECTOR>(a, b, metadata, c); });
}
extern "C" int sparse_product_tf32(int selector, const u32* a, const u32* b, const u32* metadata, float* c) {
  return (selector ? product_tf32<1> : product_tf32<0>)(a, b, metadata, c);
}
extern "C" int differences(const float* a, const float* b, u32* bits) {
  return emulator::run_grid(1, 32, 0, {}, [=] { probe_difference(a, b, bits); });
}
extern "C" int lone_barrier() {
  return emulator::run_grid(1, 64, 0, {}, [=] { if (threadIdx.x != 40) block_barrier(); });
}
extern "C" int split_warp() {
  return emulator::run_grid(1, 32, 0, {}, [=] { threadIdx.x < 16 ? (void)ballot(true) : (void)shuffle_xor(1.0f, 1); });
}
extern "C" int unaligned_copy(const char* source) {
  return emulator::run_grid(1, 32, 64, {}, [=] { copy16_async(8, source, true); });
}
extern "C" int two_blocks() {
  return emulator::run_grid(2, 64, 0, {}, [] { block_barrier(); });
}
extern "C" int fibers_kept() { return emulator::block.fibers.capacity(); }
"""


def call(name: str, *arguments: int | Tensor) -> str | None:
    """Runs a function of ENTRY; the emulator's words where it refuses."""
    library = emulator.build(ENTRY)
    pointers = [ctypes.c_void_p(x.data_ptr()) if isinstance(x, Tensor) else x for x in arguments]
    return library.emulator_error().decode() if getattr(library, name)(*pointers) else None


@pytest.mark.parametrize("launch", ["two_blocks", "lone_barrier"])
def test_a_launch_gives_its_stacks_back(launch: str) -> None:
    """Whether it ends well or not: every variant is a library of its own, and hundreds of them stay loaded."""
    assert (call(launch) is None) == (launch == "two_blocks")
    assert emulator.build(ENTRY).fibers_kept() == 0


def offset(shape: tuple, stride: tuple, index: int) -> int:
    """A CuTe layout's offset of a linear index, first mode fastest."""
    total = 0
    for extent, step in zip(shape, stride, strict=True):
        total += index % extent * step
        index //= extent
    return total


def bits(x: Tensor) -> Tensor:
    """bfloat16 as unsigned 16-bit numbers in int64."""
    return x.view(torch.int16).long() & 0xFFFF


@pytest.mark.parametrize("selector", [0, 1])
def test_sparse_product_has_cutlass_layouts(selector: int) -> None:
    """Registers filled by CUTLASS's GMMA::ALayout_64x32 and ELayout_64x32 (first warp), in 64 x 32 coordinates."""
    generator = torch.Generator().manual_seed(selector)
    nibbles = torch.tensor(ORDERED)[torch.randint(0, 6, (16, 8), generator=generator)]
    b = torch.randn(32, 8, generator=generator).bfloat16()
    a = torch.zeros(16, 32, dtype=torch.bfloat16)
    for row, group in itertools.product(range(16), range(8)):
        for place in (nibbles[row, group] & 3, nibbles[row, group] >> 2):
            a[row, 4 * group + place] = torch.randn((), generator=generator)

    registers_a = torch.zeros(32, 4, dtype=torch.int64)
    metadata = torch.randint(0, 2**32, (32,), generator=generator)  # lanes that the selector passes over hold garbage
    registers_b = torch.zeros(32, 4, dtype=torch.int64)
    metadata[torch.arange(32) % 4 // 2 == selector] = 0
    for lane in range(32):
        for group in range(4):  # ALayout: four columns, two of them stored, a register
            at = offset((4, 8, 4, 4, 2, 2), (256, 1, 16, 64, 8, 1024), lane + 128 * 4 * group)
            row, first = at % 64, at // 64
            nibble = nibbles[row, first // 4]
            low, high = (bits(a[row, first + place]) for place in (nibble & 3, nibble >> 2))
            registers_a[lane, group] = low | high << 16
        for bit in range(32):  # ELayout: a bit of metadata for each column
            at = offset((2, 2, 8, 4, 16, 2), (1024, 0, 1, 16, 64, 8), lane + 128 * bit)
            row, column = at % 64, at // 64
            if lane % 4 // 2 == selector:
                metadata[lane] |= (nibbles[row, column // 4] >> column % 4 & 1) << bit
        for j in range(4):
            row, column = 8 * j + 2 * (lane % 4), lane // 4
            registers_b[lane, j] = bits(b[row, column]) | bits(b[row + 1, column]) << 16
    c = torch.zeros(32, 4)
    words = [x.to(torch.int32).contiguous() for x in (registers_a, registers_b, metadata)]
    assert call("sparse_product", selector, *words, c) is None
    product = torch.stack([c[4 * (row % 8) + column // 2, 2 * (row // 8) + column % 2]
                           for row in range(16) for column in range(8)]).view(16, 8)  # fmt: skip
    torch.testing.assert_close(product, a.float() @ b.float())


@pytest.mark.parametrize("selector", [0, 1])
def test_sparse_product_of_tf32_is_that_of_pairs_of_16_bit_elements(selector: int) -> None:
    """To the hardware a TF32 element is two of 16 bits: the same lanes hold the same bytes of A and of the metadata."""
    generator = torch.Generator().manual_seed(selector)
    second = torch.randint(0, 2, (16, 8), generator=generator).bool()  # of each pair, which one is stored
    full = torch.randint(-8, 9, (16, 8, 2), generator=generator).float()
    full[..., 0][second], full[..., 1][~second] = 0.0, 0.0
    b = torch.randint(-8, 9, (16, 8), generator=generator).float()
    registers_a, registers_b = torch.zeros(32, 4), torch.zeros(32, 4)
    metadata = torch.randint(0, 2**32, (32,), generator=generator)
    for lane in range(32):
        for j in range(4):  # ALayout_64x32 in 16-bit columns: four of them, two TF32 columns, a register
            at = offset((4, 8, 4, 4, 2, 2), (256, 1, 16, 64, 8, 1024), lane + 128 * 4 * j)
            row, pair = at % 64, at // 64 // 4
            registers_a[lane, j] = full[row, pair].sum()
            registers_b[lane, j] = b[4 * j + lane % 4, lane // 4]
        if lane % 4 // 2 != selector:
            continue
        metadata[lane] = 0
        for bit in range(0, 32, 4):
            at = offset((2, 2, 8, 4, 16, 2), (1024, 0, 1, 16, 64, 8), lane + 128 * bit)
            row, pair = at % 64, at // 64 // 4
            metadata[lane] |= (0b1110 if second[row, pair] else 0b0100) << bit
    c = torch.zeros(32, 4)
    assert call("sparse_product_tf32", selector, registers_a, registers_b, metadata.to(torch.int32), c) is None
    product = torch.stack([c[4 * (row % 8) + column // 2, 2 * (row // 8) + column % 2]
                           for row in range(16) for column in range(8)]).view(16, 8)  # fmt: skip
    assert torch.equal(product, full.flatten(1) @ b)


@pytest.mark.parametrize("selector", [0, 1])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_metadata_stands_where_pytorch_puts_it_for_cutlass(dtype: torch.dtype, selector: int) -> None:
    """PyTorch's own compression of 32 rows: word r is lane r's, rows from 16 on for the second selector."""
    generator = torch.Generator().manual_seed(selector)
    group = 4 if dtype == torch.bfloat16 else 2
    values = torch.randint(1, 9, (32, 8, group), generator=generator).to(dtype)
    places = torch.rand(values.shape, generator=generator).argsort(-1)
    dense = values.where(places < group // 2, 0).view(32, 8 * group)
    stored, metadata = sparse_semi_structured_from_dense_cutlass(dense)
    b = torch.randint(-8, 9, (8 * group, 8), generator=generator).to(dtype)
    lane, j = torch.arange(32).unsqueeze(1), torch.arange(4)
    per_register = group // 2  # stored elements
    columns = (4 * per_register * (j // 2) + per_register * (lane % 4)).unsqueeze(-1) + torch.arange(per_register)
    a = stored[(16 * selector + lane // 4 + 8 * (j % 2)).unsqueeze(-1), columns].contiguous()
    rows = (4 * per_register * j + per_register * (lane % 4)).unsqueeze(-1) + torch.arange(per_register)
    c = torch.zeros(32, 4)
    name = "sparse_product" if dtype == torch.bfloat16 else "sparse_product_tf32"
    registers = b[rows, (lane // 4).unsqueeze(-1)].contiguous()
    assert call(name, selector, a, registers, metadata.contiguous(), c) is None
    product = c.view(8, 4, 2, 2).permute(2, 0, 1, 3).reshape(16, 8)
    assert torch.equal(product, dense[16 * selector : 16 * selector + 16].float() @ b.float())


def test_differences_have_the_signs_that_the_choice_reads() -> None:
    a = torch.tensor([1.0, 2.0, 1.0, -math.inf, math.inf, math.nan, -math.inf, 0.0, 1e-45] + [0.0] * 23)
    b = torch.tensor([2.0, 1.0, 1.0, -math.inf, math.inf, 1.0, 5.0, -0.0, 0.0] + [0.0] * 23)
    result = torch.zeros(32, dtype=torch.int32)
    assert call("differences", a, b, result) is None
    assert (result[:9] < 0).tolist() == [True, False, False, False, False, False, True, False, False]


def test_illegal_metadata_is_refused() -> None:
    zeros = torch.zeros(32, 4, dtype=torch.int32)
    for nibble in range(16):
        metadata = torch.full((32,), nibble * 0x11111111, dtype=torch.int64).to(torch.int32)
        refused = call("sparse_product", 0, zeros, zeros, metadata, torch.zeros(32, 4))
        assert (refused is None) == (nibble in ORDERED), nibble
        refused = call("sparse_product_tf32", 0, zeros, zeros, metadata, torch.zeros(32, 4))
        assert (refused is None) == (nibble in (0b0100, 0b1110)), nibble


def test_threads_that_miss_each_other_are_refused() -> None:
    assert "deadlock" in str(call("lone_barrier"))
    assert "divergence" in str(call("split_warp"))
    assert "not a multiple of 16" in str(call("unaligned_copy", torch.zeros(16)))
