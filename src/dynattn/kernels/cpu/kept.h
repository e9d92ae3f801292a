// What a row keeps as a list: weights, and where their value rows lie. Products with the values then cost what is kept.
#pragma once

#include "cut.h"

namespace dynattn::DYNATTN_NAMESPACE {

// Kept scores of `length` from key `first` on go to the front of `scores`, `count` of them there already, with the
// places of their value rows, which `place_of` has by key and `base` is added to. What is written has been read.
// `largest` follows the scores.
DYNATTN_INLINE int64_t list_scores(const Cut& cut, const float* row, int64_t first, int64_t length,
                                   const int32_t* place_of, int32_t base, float* scores, int32_t* places, int64_t count,
                                   Vec& largest) {
  const Vec start = broadcast_integer(base);
  for (int64_t at = 0; at < length; at += kWidth) {
    const Vec x = load(row + at);
    const uint32_t kept = kept_lanes(cut, x, first + at);
    largest = max(largest, x);
    const Vec place = add_integers(load_any(reinterpret_cast<const float*>(place_of + at)), start);
    store_any(scores + count, compress(kept, x));
    store_any(reinterpret_cast<float*>(places + count), compress(kept, place));
    count += __builtin_popcount(kept);
  }
  return count;
}

// out += Σ weights · values at `places`, for kC vectors. Several entries go at once where one row's sums are too few to
// hide the latency of the additions.
template <int kC>
static void gather_values(float* out, const float* values, const float* weights, const int32_t* places, int64_t count) {
  constexpr int kAtOnce = kC > 4 ? 1 : kC > 2 ? 2 : 4;
  Vec acc[kAtOnce][kC];
#pragma GCC unroll 8
  for (int c = 0; c < kC; c++) {
    acc[0][c] = load(out + c * kWidth);
#pragma GCC unroll 8
    for (int u = 1; u < kAtOnce; u++) acc[u][c] = zero();
  }
  int64_t i = 0;
  for (; i + kAtOnce <= count; i += kAtOnce) {
#pragma GCC unroll 8
    for (int u = 0; u < kAtOnce; u++) {
      const Vec weight = broadcast(weights[i + u]);
      const float* row = values + places[i + u];
#pragma GCC unroll 8
      for (int c = 0; c < kC; c++) acc[u][c] = fmadd(weight, load(row + c * kWidth), acc[u][c]);
    }
  }
  for (; i < count; i++) {
    const Vec weight = broadcast(weights[i]);
    const float* row = values + places[i];
#pragma GCC unroll 8
    for (int c = 0; c < kC; c++) acc[0][c] = fmadd(weight, load(row + c * kWidth), acc[0][c]);
  }
#pragma GCC unroll 8
  for (int c = 0; c < kC; c++) {
#pragma GCC unroll 8
    for (int u = 1; u < kAtOnce; u++) acc[0][c] = add(acc[0][c], acc[u][c]);
    store(out + c * kWidth, acc[0][c]);
  }
}

static void gather_values(int chunk, float* out, const float* values, const float* weights, const int32_t* places,
                          int64_t count) {
  switch (chunk) {
    case 1:
      return gather_values<1>(out, values, weights, places, count);
    case 2:
      return gather_values<2>(out, values, weights, places, count);
    case 3:
      return gather_values<3>(out, values, weights, places, count);
    case 4:
      return gather_values<4>(out, values, weights, places, count);
#if !defined(__AVX512F__)
    case 5:
      return gather_values<5>(out, values, weights, places, count);
    case 6:
      return gather_values<6>(out, values, weights, places, count);
    case 7:
      return gather_values<7>(out, values, weights, places, count);
    case 8:
      return gather_values<8>(out, values, weights, places, count);
#endif
  }
}

}  // namespace dynattn::DYNATTN_NAMESPACE
