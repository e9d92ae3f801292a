// The tile engine: products of small matrices of bfloat16 numbers, summed in float32.
//
// An engine has four accumulators of 16 rows × 16 floats, and two operands of either kind: A, 16 rows of 32 bfloat16
// numbers as they lie in memory, and B, 16 rows of 16 pairs, the pair r of column n being its numbers 2r and 2r + 1:
//
//     Engine engine;                             configures the processor; the end of its life undoes that
//     engine.zero<c>()                           accumulator c = 0, of 0 … 3
//     engine.load_sums<c>(from, stride)          accumulator c from 16 rows of floats, `stride` bytes apart
//     engine.load_a<i>(from, stride)             operand A number i, of 0 and 1, likewise
//     engine.load_b<j>(from)                     operand B number j, 16 rows of 64 bytes side by side
//     engine.multiply<i, j>()                    accumulator 2i + j += A[i] · B[j]
//     engine.store<c>(to, stride)
//
// Operands must stay as they are in memory until they are multiplied; an engine may read them only then.
//
// What is computed, to the bit, by AMX (TDPBF16PS in Intel's Software Developer's Manual) and by the portable engine:
// two sums for each element, of the even and of the odd numbers, each over the 16 pairs in order, then
//
//     accumulator + (even sum + odd sum)
//
// A product is added with one rounding, to the nearest and to even in ties; inputs below 2^-126 count as 0, and so do
// results. VDPBF16PS has the same operations in another order: it adds each pair's odd product to the accumulator, and
// then the even one.
#pragma once

#include <stdint.h>

#include "simd/simd.h"

#if defined(DYNATTN_TILES_AMX)
#include "tiles/engine_amx.h"
#elif defined(DYNATTN_TILES_AVX512BF16)
#include "tiles/engine_avx512bf16.h"
#else
#include "tiles/engine_portable.h"
#endif

namespace dynattn::DYNATTN_NAMESPACE {

constexpr int kTileRows = 16;
constexpr int kTileDepth = 32;                     // bfloat16 numbers of a row of A
constexpr int kTileBytes = kTileRows * 64;         // of an operand
constexpr int kTileWords = kTileRows * kTileRows;  // of an operand, or floats of an accumulator

// One operand of a run of products: where its two tiles lie, and where those of the next 32 numbers do, in bytes.
struct Operand {
  const char* first;
  int64_t second;  // from the first tile to the second
  int64_t step;    // from the tiles of one step to the next
  int64_t stride;  // between rows of A
};

constexpr int kMostParts = 3;

// The products of operands that are sums of parts, of which each has the place and size of an operand: one for a pair
// of parts, the smallest first. `a` and `b` are the bytes from the first parts to those that are multiplied.
struct Terms {
  int count = 1;
  int64_t a[kMostParts * (kMostParts + 1) / 2] = {}, b[kMostParts * (kMostParts + 1) / 2] = {};
};

// The pairs of `parts` parts that are not smaller than the last part by itself.
static Terms terms_of(int parts, int64_t a_bytes, int64_t b_bytes) {
  Terms terms;
  terms.count = 0;
  for (int sum = parts - 1; sum >= 0; sum--) {
    for (int i = 0; i <= sum; i++) {
      terms.a[terms.count] = i * a_bytes;
      terms.b[terms.count++] = (sum - i) * b_bytes;
    }
  }
  return terms;
}

// sums[kA · 16][kB · 16] (+)= A · B over `steps` times 32 numbers, for each of the terms. `stride`: floats between rows
// of sums.
template <int kA, int kB, bool kAdd>
DYNATTN_INLINE void multiply_tiles(Engine& engine, const Operand& a, const Operand& b, const Terms& terms,
                                   int64_t steps, float* sums, int64_t stride) {
  const int64_t row = stride * static_cast<int64_t>(sizeof(float));
  float* const below = sums + kTileRows * stride;
  if constexpr (kAdd) {
    engine.load_sums<0>(sums, row);
    if constexpr (kB == 2) engine.load_sums<1>(sums + kTileRows, row);
    if constexpr (kA == 2) engine.load_sums<2>(below, row);
    if constexpr (kA == 2 && kB == 2) engine.load_sums<3>(below + kTileRows, row);
  } else {
    engine.zero<0>();
    if constexpr (kB == 2) engine.zero<1>();
    if constexpr (kA == 2) engine.zero<2>();
    if constexpr (kA == 2 && kB == 2) engine.zero<3>();
  }
  for (int term = 0; term < terms.count; term++) {
    const char *left = a.first + terms.a[term], *right = b.first + terms.b[term];
    for (int64_t step = 0; step < steps; step++, left += a.step, right += b.step) {
      engine.load_a<0>(left, a.stride);
      engine.load_b<0>(right);
      engine.multiply<0, 0>();
      if constexpr (kB == 2) {
        engine.load_b<1>(right + b.second);
        engine.multiply<0, 1>();
      }
      if constexpr (kA == 2) {
        engine.load_a<1>(left + a.second, a.stride);
        engine.multiply<1, 0>();
      }
      if constexpr (kA == 2 && kB == 2) engine.multiply<1, 1>();
    }
  }
  engine.store<0>(sums, row);
  if constexpr (kB == 2) engine.store<1>(sums + kTileRows, row);
  if constexpr (kA == 2) engine.store<2>(below, row);
  if constexpr (kA == 2 && kB == 2) engine.store<3>(below + kTileRows, row);
}

// The same for any number of tiles of A, two at a time, and one or two of B; `second` is then from each tile of A to
// the next.
template <bool kAdd>
static void multiply_panel(Engine& engine, Operand a, int64_t a_tiles, const Operand& b, int b_tiles,
                           const Terms& terms, int64_t steps, float* sums, int64_t stride) {
  engine.fence();
  for (; a_tiles >= 2; a_tiles -= 2) {
    if (b_tiles == 2) {
      multiply_tiles<2, 2, kAdd>(engine, a, b, terms, steps, sums, stride);
    } else {
      multiply_tiles<2, 1, kAdd>(engine, a, b, terms, steps, sums, stride);
    }
    a.first += 2 * a.second, sums += 2 * kTileRows * stride;
  }
  if (a_tiles == 1 && b_tiles == 2) multiply_tiles<1, 2, kAdd>(engine, a, b, terms, steps, sums, stride);
  if (a_tiles == 1 && b_tiles == 1) multiply_tiles<1, 1, kAdd>(engine, a, b, terms, steps, sums, stride);
  engine.fence();
}

}  // namespace dynattn::DYNATTN_NAMESPACE
