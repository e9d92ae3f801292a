// Masks, causality and the end of the keys, as one additive tile: 0, -inf, or the caller's bias, by position.
#pragma once

#include "common/dtypes.h"
#include "common/plan.h"

namespace dynattn::DYNATTN_NAMESPACE {

// Above this a bias, added to a score that the range checks allow, could overflow.
constexpr float kLargestBias = 1e38f;

struct BiasSummary {
  bool any;      // something is allowed
  bool neutral;  // all is 0
  bool unsafe;   // NaN, +inf or huge: the careful variant has to look at each score
};

// The bias of a row without a mask: keys from `allowed` on are forbidden.
static BiasSummary end_row(const Plan& plan, int64_t allowed, float* to) {
  const Vec end = broadcast(static_cast<float>(allowed)), forbidden = broadcast(-INFINITY);
  for (int position = 0; position < plan.tile; position += kWidth) {
    store(to + position, select(greater(end, load(plan.key_number + position)), zero(), forbidden));
  }
  return {allowed > 0, allowed >= plan.tile, false};
}

// The bias of one row over one tile, by position. `row` points at the row's mask entries of this tile, NULL without
// a mask; keys from `allowed` on are forbidden.
static BiasSummary bias_row(const Plan& plan, const char* row, int64_t allowed, float* to) {
  if (row == nullptr) return end_row(plan, allowed, to);
  alignas(64) float by_key[kMaxTile];
  mask_to_floats(*plan.args, row, allowed, by_key);
  prefetch_mask(*plan.args, row, plan.tile);
  for (int64_t i = allowed; i < plan.tile; i++) by_key[i] = -INFINITY;

  const Vec forbidden = broadcast(-INFINITY), largest = broadcast(kLargestBias);
  uint32_t any = 0, nonzero = 0, safe = ~0u;
  const bool in_order = plan.stride % kWidth == 0 || plan.m == 1;  // the lanes of a vector are neighbouring keys
  for (int position = 0; position < plan.tile; position += kWidth) {
    alignas(64) float lanes[kWidth];
    const float* from = by_key + plan.key_of[position];
    if (!in_order) {
      for (int lane = 0; lane < kWidth; lane++) lanes[lane] = by_key[plan.key_of[position + lane]];
      from = lanes;
    }
    const Vec bias = load_any(from);
    store(to + position, bias);
    any |= bits(greater(bias, forbidden));
    nonzero |= bits(greater(abs(bias), zero()));
    safe &= bits(greater(largest, bias));
  }
  constexpr uint32_t all = (uint32_t{1} << kWidth) - 1;
  const bool unsafe = (safe & all) != all;
  return {any != 0 || unsafe, nonzero == 0 && !unsafe, unsafe};
}

}  // namespace dynattn::DYNATTN_NAMESPACE
