// What the wgmma kernels share: who does what in a block, and tiles in shared memory as products read them.
#pragma once

#include "hopper.cuh"

namespace dynattn {

constexpr int WARPGROUP = 128, CONSUMERS = 2, CONSUMER_ROWS = 64;  // two compute, 64 queries at a time each; one copies
// 2 · 128 · 240 + 128 · 24 registers fill the file of 65536; the compiler plans with 168, the even share.
constexpr int CONSUMER_REGISTERS = 240, PRODUCER_REGISTERS = 24;

constexpr int LINE_COLUMNS = 64, LINE_BYTES = 128;  // columns in a row of a swizzled panel
constexpr int SWIZZLE_ATOM_BYTES = 8 * LINE_BYTES;  // 8 rows: where the swizzle starts anew

// Descriptor of an operand in shared memory, 128-byte swizzle: addresses and strides in units of 16 bytes.
DYNATTN_DEVICE u64 descriptor(u32 address, int leading_bytes, int stride_bytes) {
  return static_cast<u64>((address & 0x3FFFF) >> 4) | static_cast<u64>(leading_bytes >> 4) << 16 |
         static_cast<u64>(stride_bytes >> 4) << 32 | 1ull << 62;
}
// The descriptor of an operand that stands `bytes` further on: one addition, since shared memory ends before the address's
// field does.
DYNATTN_DEVICE u64 advanced(u64 descriptor, int bytes) {
  return (descriptor & ~0xFFFFFFFFull) | (static_cast<u32>(descriptor) + static_cast<u32>(bytes >> 4));
}

}  // namespace dynattn
