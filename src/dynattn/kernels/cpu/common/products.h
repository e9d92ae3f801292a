// Products of a band of packed queries with one panel of packed keys.
#pragma once

#include "common/plan.h"

namespace dynattn::DYNATTN_NAMESPACE {

// acc[r][v] = Σ_k query[k][r] · key[k][v]: each key vector is loaded once for all rows, each query broadcast. The rows
// may be a part of a band of kBand.
template <int kR, int kV, int kBand = kR>
DYNATTN_INLINE void multiply(const float* query, const float* key, int64_t head_dim, Vec acc[kR][kV]) {
#pragma GCC unroll 16
  for (int r = 0; r < kR; r++) {
#pragma GCC unroll 4
    for (int v = 0; v < kV; v++) acc[r][v] = zero();
  }
  for (int64_t k = 0; k < head_dim; k++) {
    Vec b[kV];
#pragma GCC unroll 4
    for (int v = 0; v < kV; v++) b[v] = load(key + v * kWidth);
#pragma GCC unroll 16
    for (int r = 0; r < kR; r++) {
      const Vec a = broadcast(query[r]);
#pragma GCC unroll 4
      for (int v = 0; v < kV; v++) acc[r][v] = fmadd(a, b[v], acc[r][v]);
    }
    query += kBand;
    key += kV * kWidth;
  }
}

}  // namespace dynattn::DYNATTN_NAMESPACE
