// Sums listed rows in registers: a key's list of queries in the backward, a query's list of keys in the forward.
#pragma once

#include "common/chunks.h"

namespace dynattn::DYNATTN_NAMESPACE {

// to[0 … kC) += Σ_i factors[i] · rows[ids[i]]. Where the sums of one row are too few to hide the latency of the
// additions, several entries are added at once.
template <int kC>
static void add_rows(float* to, const float* rows, const float* factors, const int32_t* ids, int count) {
  constexpr int kAtOnce = kC > 4 ? 1 : 8 / kC;
  Vec acc[kAtOnce][kC];
#pragma GCC unroll 8
  for (int c = 0; c < kC; c++) {
    acc[0][c] = load(to + c * kWidth);
#pragma GCC unroll 8
    for (int u = 1; u < kAtOnce; u++) acc[u][c] = zero();
  }
  int i = 0;
  for (; i + kAtOnce <= count; i += kAtOnce) {
#pragma GCC unroll 8
    for (int u = 0; u < kAtOnce; u++) {
      const Vec factor = broadcast(factors[i + u]);
      const float* row = rows + ids[i + u] * (kC * kWidth);
#pragma GCC unroll 8
      for (int c = 0; c < kC; c++) acc[u][c] = fmadd(factor, load(row + c * kWidth), acc[u][c]);
    }
  }
  for (; i < count; i++) {
    const Vec factor = broadcast(factors[i]);
    const float* row = rows + ids[i] * (kC * kWidth);
#pragma GCC unroll 8
    for (int c = 0; c < kC; c++) acc[0][c] = fmadd(factor, load(row + c * kWidth), acc[0][c]);
  }
#pragma GCC unroll 8
  for (int c = 0; c < kC; c++) {
#pragma GCC unroll 8
    for (int u = 1; u < kAtOnce; u++) acc[0][c] = add(acc[0][c], acc[u][c]);
    store(to + c * kWidth, acc[0][c]);
  }
}

static void add_rows(int chunk, float* to, const float* rows, const float* factors, const int32_t* ids, int count) {
  with_chunk(chunk, [&](auto vectors) { add_rows<decltype(vectors)::value>(to, rows, factors, ids, count); });
}

}  // namespace dynattn::DYNATTN_NAMESPACE
