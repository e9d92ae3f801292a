// The tile engine: products of small matrices of bfloat16 numbers, summed in float32.
//
//     sums[16 rows of A × 16 columns of B] (+)= A · B
//
// A has rows of bfloat16 numbers as they lie in memory, in tiles of 16 rows × 32 numbers; B has 16 columns, in tiles of
// 16 rows of 16 pairs, the pair r of column n being its numbers 2r and 2r + 1. An engine is a class, configured when it
// is made, and a function, multiply_tiles(), of one or two tiles of A by one or two of B:
//
//     engine_amx.h          tiles are registers: tile_products.h loads and multiplies them
//     engine_portable.h     likewise, in plain C++
//     engine_avx512bf16.h   rows of sums are registers, and stay there for a whole run of products
//
// What is computed, to the bit, by AMX (TDPBF16PS in Intel's Software Developer's Manual) and by the portable engine:
// two sums for each element of 32 numbers, of the even and of the odd ones, each over the 16 pairs in order, then
//
//     accumulator + (even sum + odd sum)
//
// A product is added with one rounding, to the nearest and to even in ties; inputs below 2^-126 count as 0, and so do
// results. VDPBF16PS has the same operations in another order: it adds each pair's odd product to the accumulator, and
// then the even one.
#pragma once

#include <stdint.h>

#include "simd/simd.h"

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

// What an engine with kPicks takes in place of B, where few of a column's numbers are not 0: for each span of 4 or 8
// numbers a pair of them, and where its four bytes are in the span's of A.
struct Picks {
  const uint32_t *numbers, *places;  // [span][16 columns], as many as fill the steps
  int64_t second;                    // words from the first 16 columns to the second
  int64_t step;                      // bytes of A from its 32 numbers of one step to those of the next
  int64_t steps;
};

}  // namespace dynattn::DYNATTN_NAMESPACE

#if defined(DYNATTN_TILES_AVX512BF16)
#include "tiles/engine_avx512bf16.h"
#else
#include "tiles/tile_products.h"
#endif

namespace dynattn::DYNATTN_NAMESPACE {

// sums[16 · a_tiles][16 · b_tiles] (+)= A · B for any number of tiles of A, two at a time, and one or two of B; `second`
// is then from each tile of A to the next.
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
