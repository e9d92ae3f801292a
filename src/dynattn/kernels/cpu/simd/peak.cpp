// The peak of multiply-adds of one instruction set. Compiled once for each.
#include "common/builds.h"
#include "simd/simd.h"

namespace dynattn::DYNATTN_NAMESPACE {

// Chains of multiply-adds, enough of them to fill every unit through its latency.
double fma_chains(int64_t rounds) {
  constexpr int kChains = 10;
  Vec x[kChains];
  for (int i = 0; i < kChains; i++) x[i] = broadcast(static_cast<float>(i));
  const Vec factor = broadcast(0.999f), term = broadcast(0.001f);
  for (int64_t round = 0; round < rounds; round++) {
#pragma GCC unroll 10
    for (int i = 0; i < kChains; i++) x[i] = fmadd(x[i], factor, term);
  }
  Vec sum = zero();
  for (int i = 0; i < kChains; i++) sum = add(sum, x[i]);
  volatile float keep = reduce_add(sum);  // without this the compiler would leave the chains out
  (void)keep;
  return 2.0 * kWidth * kChains * static_cast<double>(rounds);
}

}  // namespace dynattn::DYNATTN_NAMESPACE
