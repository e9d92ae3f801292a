// Products by an engine whose tiles are registers. It has four accumulators of 16 rows × 16 floats and two operands of
// either kind:
//
//     Engine engine;                             configures the processor; the end of its life undoes that
//     engine.zero<c>()                           accumulator c = 0, of 0 … 3
//     engine.load_sums<c>(from, stride)          accumulator c from 16 rows of floats, `stride` bytes apart
//     engine.load_a<i>(from, stride)             operand A number i, of 0 and 1, likewise
//     engine.load_b<j>(from)                     operand B number j, 16 rows of 64 bytes side by side
//     engine.multiply<i, j>()                    accumulator 2i + j += A[i] · B[j]
//     engine.store<c>(to, stride)
//     engine.fence()                             memory is as it stands in the code, before this and behind it
//
// Operands must stay as they are in memory until they are multiplied; an engine may read them only then.
#pragma once

#if defined(DYNATTN_TILES_AMX)
#include "tiles/engine_amx.h"
#else
#include "tiles/engine_portable.h"
#endif

namespace dynattn::DYNATTN_NAMESPACE {

constexpr bool kTakesParts = true;
constexpr bool kPicks = false;

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

}  // namespace dynattn::DYNATTN_NAMESPACE
